"""Examples to batches of one shape: padded, a text a row, or packed, several a row; shuffled by seed, indexed by step.

A step's number fixes its batch, so that is all a checkpoint needs to hold of the input.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Bool, Int

from colm_jax.data.records import Example

Rows = Sequence[Sequence[int]]  # of a batch: for each row, the numbers of the examples in it, one behind the other
Lengths = Sequence[int] | Int[np.ndarray, "N"]  # tokens of each text
_OPEN = 64  # rows that packing keeps open


@dataclass(frozen=True)
class Batch:
    """Rows of texts, padded on the right. `mask[b, t]` speaks of the token at t + 1, which position t predicts."""

    tokens: Int[np.ndarray, "B T1"]
    mask: Bool[np.ndarray, "B T1-1"]
    segments: Int[np.ndarray, "B T1"]  # 1, 2, ... the row's texts; 0 padding
    rows: Rows


def padded_length(lengths: Lengths, multiple: int = 32) -> int:
    """Tokens per row: the longest text's, rounded up so that near lengths share one compiled program."""
    return -(-int(np.max(lengths)) // multiple) * multiple


def collate(examples: Sequence[Example], rows: Rows, batch_size: int, length: int) -> Batch:
    """The named examples as one batch of fixed shape; rows that are missing are all padding."""
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
    """Rows of training batches with a text each: element i is the batch of step i.

    Each epoch has an order of its own. The last batch may be short.
    """
    numbers = grain.MapDataset.range(count).seed(seed).shuffle().repeat(epochs)
    return numbers.map(lambda number: [int(number)]).batch(batch_size, drop_remainder=False, batch_fn=list)


def packed(lengths: Lengths, size: int, batch_size: int, epochs: int, seed: int) -> list[list[list[int]]]:
    """As `shuffled`, with as many texts a row as fit: batches of rows of at most `size` tokens.

    Each epoch is packed by itself, in its own order, so that a text is read once an epoch.
    """
    rows: list[list[int]] = []
    order = shuffled(len(lengths), len(lengths), epochs, seed)
    for epoch in range(epochs):
        rows += first_fit((row[0] for row in order[epoch]), lengths, size)
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def first_fit(numbers: Iterator[int], lengths: Lengths, size: int) -> list[list[int]]:
    """Packs texts into rows of at most `size` tokens, each into the first of the newest open rows that has room."""
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
