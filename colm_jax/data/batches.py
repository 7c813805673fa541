"""Batches of a fixed shape: padded (one text per row) or packed (several per row); shuffled by seed, indexed by step.

The step number determines the batch, so a checkpoint stores no other state of the input pipeline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Bool, Int

from colm_jax.data.records import Example

PackedRows = Sequence[Sequence[int]]  # for each row of a batch, the numbers of its examples in order
Lengths = Sequence[int] | Int[np.ndarray, "N"]  # tokens of each text
_OPEN = 64  # rows that packing considers for the next text


@dataclass(frozen=True)
class Batch:
    """Rows of texts, padded on the right. `mask[b, t]` is about the token at t + 1, which position t predicts."""

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
            mask[b, start : end - 1] = example.targets[1:]
            segments[b, start:end] = segment
            start = end
    return Batch(tokens, mask, segments, rows)


def shuffled(count: int, batch_size: int, epochs: int, seed: int) -> grain.MapDataset:
    """Return the rows of training batches with one text per row: element i is the batch of step i.

    Each epoch has its own order. The last batch may have fewer rows.
    """
    numbers = grain.MapDataset.range(count).seed(seed).shuffle().repeat(epochs)
    return numbers.map(lambda number: [int(number)]).batch(batch_size, drop_remainder=False, batch_fn=list)


def packed(lengths: Lengths, size: int, batch_size: int, epochs: int, seed: int) -> list[list[list[int]]]:
    """Return batches as `shuffled`, with as many texts per row as fit into `size` tokens.

    Each epoch is packed separately, in its own order, so that it has every text once.
    """
    rows: list[list[int]] = []
    order = shuffled(len(lengths), len(lengths), epochs, seed)
    for epoch in range(epochs):
        rows += first_fit((row[0] for row in order[epoch]), lengths, size)
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def first_fit(numbers: Iterator[int], lengths: Lengths, size: int) -> list[list[int]]:
    """Pack texts into rows of at most `size` tokens: each goes to the first of the 64 newest rows that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in numbers:
        length = int(lengths[number])
        for i in range(max(0, len(rows) - _OPEN), len(rows)):
            if room[i] >= length:
                rows[i].append(number)
                room[i] -= length
                break
        else:
            rows.append([number])
            room.append(size - length)
    return rows
