"""Prefill: which sequences a model reads in one pass over many tokens each, before their next decode step."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from colm_jax.models.cache import BLOCK

PREFILL_SIZES = (16, 64, 128, 256, 512, 1024)  # tokens of one sequence in one pass
PREFILL_TOKENS = 512  # that a model reads in one pass, of several sequences
ROOM = max(PREFILL_SIZES[0], BLOCK)  # a pass stores its whole chunk after a sequence's length, whatever part counts


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number from 1 on."""
    return 1 << (number - 1).bit_length()


def prefill_group(
    slots: Sequence[int], done: Int[np.ndarray, "B"], ends: Int[np.ndarray, "B"], room: int
) -> tuple[list[int], int]:
    """Return the slots whose sequences one pass can read, and its size.

    Args:
      slots: with unread tokens.
      done: tokens of each sequence that are read.
      ends: tokens of each to be read.
      room: positions of the cache; a pass stores its whole size.
    """

    def shape(slot: int) -> tuple[int, bool]:
        sizes = [size for size in PREFILL_SIZES if done[slot] + size <= room]
        enough = [size for size in sizes if size >= ends[slot] - done[slot]]
        return (enough or sizes[-1:])[0], bool(done[slot] == 0)

    size, fresh = shape(slots[0])
    return [slot for slot in slots if shape(slot) == (size, fresh)][: max(1, PREFILL_TOKENS // size)], size
