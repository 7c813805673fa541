"""Prefill: which sequences a model reads in one pass over many tokens each, before their next decode step."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from colm_jax.models.cache import BLOCK

PREFILL_TOKENS = 512  # that a model reads in one pass, of several sequences


@dataclass(frozen=True)
class PassShape:
    """Sequences that one pass reads, at most, and tokens of each."""

    rows: int
    tokens: int


# Of batches that grow with their requests.
PREFILL_SHAPES = tuple(PassShape(max(1, PREFILL_TOKENS // size), size) for size in (16, 64, 128, 256, 512, 1024))
ROOM = max(PREFILL_SHAPES[0].tokens, BLOCK)  # a pass stores its whole chunk after a sequence's length


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number from 1 on."""
    return 1 << (number - 1).bit_length()


def fixed_shapes(slots: int, positions: int) -> tuple[PassShape, ...]:
    """Return the shapes of passes over a batch whose shapes never change, of which there are few."""
    # A CPU gains nothing by long passes of one sequence, which hold up the others.
    sizes = (128,) if jax.default_backend() == "cpu" else (128, 512)
    long = [
        PassShape(rows, size)
        for size in sizes
        for rows in sorted({1, min(slots, max(1, PREFILL_TOKENS // size))})
        if size <= positions
    ]
    return (PassShape(slots, PREFILL_SHAPES[0].tokens), *long)


def prefill_group(
    slots: Sequence[int],
    done: Int[np.ndarray, "B"],
    ends: Int[np.ndarray, "B"],
    room: int,
    shapes: Sequence[PassShape] = PREFILL_SHAPES,
) -> tuple[list[int], PassShape]:
    """Return the slots whose sequences one pass can read, and its shape.

    Args:
      slots: with unread tokens.
      done: tokens of each sequence that are read.
      ends: tokens of each to be read.
      room: positions of the cache; a pass stores its whole size.
      shapes: of passes, smallest first; the first one has at most ROOM tokens.

    Of shapes with as many tokens, the smallest that has a row for each sequence is taken.
    """

    def key(slot: int) -> tuple[int, bool]:
        possible = [shape.tokens for shape in shapes if done[slot] + shape.tokens <= room]
        enough = [tokens for tokens in possible if tokens >= ends[slot] - done[slot]]
        return (enough or possible[-1:])[0], bool(done[slot] == 0)

    tokens, fresh = key(slots[0])
    alike = [slot for slot in slots if key(slot) == (tokens, fresh)]
    of_size = [shape for shape in shapes if shape.tokens == tokens]
    shape = next((shape for shape in of_size if shape.rows >= len(alike)), of_size[-1])
    return alike[: shape.rows], shape
