"""Batches of a fixed shape: padded (one text per row) or packed (several per row); texts shuffled by seed, by step.

The step number determines the batch, so a checkpoint stores no other state of the input pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Bool, Int

from colm_jax.data.packing import Lengths, PackedRows
from colm_jax.data.records import Example
from colm_jax.models.arrays import AnyArray, pytree


@dataclass(frozen=True)
class Batch:
    """Rows of texts, padded on the right.

    `mask[b, t]` is about the token at t + 1, which position t predicts: it begins a unit that counts in the loss.
    """

    tokens: Int[np.ndarray, "B T1"]
    mask: Bool[np.ndarray, "B T1-1"]
    segments: Int[np.ndarray, "B T1"]  # 1, 2, ... for the row's texts; 0 for padding
    rows: PackedRows


def padded_length(lengths: Lengths, multiple: int = 32) -> int:
    """Return the row length: that of the longest text, rounded up so that similar lengths share a compiled program."""
    return -(-int(np.max(lengths)) // multiple) * multiple


def collate(examples: Sequence[Example], rows: PackedRows, batch_size: int, length: int) -> Batch:
    """Return the examples of `rows` as one batch of fixed shape; missing rows are padding."""
    tokens = np.zeros((batch_size, length), np.int32)
    mask = np.zeros((batch_size, length - 1), bool)
    segments = np.zeros((batch_size, length), np.int32)
    for b, row in enumerate(rows):
        start = 0
        for segment, number in enumerate(row, start=1):
            example = examples[number]
            end = start + len(example.ids)
            tokens[b, start:end] = example.ids
            mask[b, start : end - 1] = example.counted[1:]
            segments[b, start:end] = segment
            start = end
    return Batch(tokens, mask, segments, rows)


@pytree
@dataclass(frozen=True)
class UnitMarks:
    """Where the units of a batch's texts are. Entry t is about the token at t + 1, as in `Batch.mask`."""

    tokens: Bool[AnyArray, "B T"]  # it counts in the loss
    last: Bool[AnyArray, "B T"]  # it is the last one of its unit
    opens: Bool[AnyArray, "B T"]  # it begins a unit that counts, after another unit: S at position t is before it
    closes: Bool[AnyArray, "B T"]  # it ends a unit that counts, and something follows: S at position t + 1 is after it


def unit_marks(examples: Sequence[Example], rows: PackedRows, shape: tuple[int, int]) -> UnitMarks:
    """Return where the units are in a batch of these rows and this shape [B, T]."""
    found = np.zeros((4, *shape), bool)
    for b, row in enumerate(rows):
        start = 0
        for number in row:
            example = examples[number]
            count = len(example.ids)
            begins = np.ones(count, bool) if example.starts is None else example.starts
            last = np.append(begins[1:] | ~example.targets[1:], True)  # before what begins, or does not count
            later = np.arange(count) > np.argmax(begins)
            marks = (
                example.targets,
                last,
                example.counted & later,
                example.targets & last & (np.arange(count) < count - 1),
            )
            for i, mark in enumerate(marks):
                found[i, b, start : start + count - 1] = mark[1:]
            start += count
    return UnitMarks(*found)


def shuffled(count: int, batch_size: int, epochs: int, seed: int) -> grain.MapDataset:
    """Return the texts of training batches, one text per row: element i is the batch of step i.

    Each epoch has its own order. The last batch may have fewer rows.
    """
    numbers = grain.MapDataset.range(count).seed(seed).shuffle().repeat(epochs)
    return numbers.map(lambda number: [int(number)]).batch(batch_size, drop_remainder=False, batch_fn=list)
