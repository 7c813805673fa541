"""Packing: texts of different lengths in rows of few shapes, so that a pass over a data set computes little padding.

Texts are packed a shard at a time. A row takes the longest text that is left, then always the longest one that still
fits. The shapes of the batches are chosen once for a whole data set, by the work of computing it.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int

Lengths = Sequence[int] | Int[np.ndarray, "N"]  # tokens of each text
PackedRows = Sequence[Sequence[int]]  # for each row of a batch, the numbers of its texts in order

_GRAIN = 32  # row lengths are its multiples, four in each octave from 128 on
_SHORT = 1024  # row lengths that are considered whatever the longest text
_SAMPLE = 8  # shards by which shapes are chosen
_PASS, _PROGRAM = 64, 4096  # what a pass, and compiling a program, cost beside the positions: as much as so many


@dataclass(frozen=True)
class Shape:
    """The shape of a batch."""

    positions: int  # of a row, which holds one token more: its last token is predicted, but predicts nothing
    rows: int

    @property
    def size(self) -> int:
        """The positions that a pass computes."""
        return self.positions * self.rows


PackedBatch = tuple[Shape, PackedRows]  # rows that are missing are padding


@dataclass(frozen=True)
class Packing:
    """The shapes of a data set's batches."""

    positions: tuple[int, ...]  # row lengths, rising; most rows have the first, the others hold longer texts
    rows: tuple[int, ...]  # rows of a batch of the shortest row length, falling
    group: int  # rows are opened so many at a time; a batch of longer rows has as many

    def batches(self, lengths: Lengths, numbers: Iterable[int]) -> list[PackedBatch]:
        """Return the texts of these numbers in batches.

        Raises:
          ValueError: a text is longer than the longest row.
        """
        rows = pack(lengths, numbers, self.positions, self.group)
        found: list[PackedBatch] = []
        for positions, same in groupby(rows, key=lambda row: row[0]):
            texts, first = [row for _, row in same], 0
            for count in self._split(positions, len(texts)):
                batch = [row for row in texts[first : first + count] if row]
                found.append((Shape(positions, count), batch))
                first += count
        return found

    def shapes(self, positions: int, rows: int) -> Counter[Shape]:
        """Return the batches of `rows` rows of one length by shape."""
        return Counter(Shape(positions, count) for count in self._split(positions, rows))

    def _split(self, positions: int, rows: int) -> Iterator[int]:
        """Yield the rows of each batch."""
        counts = self.rows if positions == self.positions[0] else (self.group,)
        while rows > 0:
            count = next((count for count in counts if count <= rows), counts[-1])
            yield count
            rows -= count


def pack(
    lengths: Lengths, numbers: Iterable[int], positions: Sequence[int], group: int = 1
) -> list[tuple[int, list[int]]]:
    """Pack texts into rows: each has the shortest of the row lengths that holds the longest text left.

    Args:
      lengths: tokens of each text of the data set.
      numbers: the texts.
      positions: row lengths, rising; a row holds one token more.
      group: rows of one length are opened so many at a time; the last of them may be empty.

    Returns:
      Each row's length and texts, longest rows first.

    Raises:
      ValueError: a text is longer than the longest row.
    """
    waiting = sorted((int(lengths[number]), number) for number in numbers)
    if waiting and waiting[-1][0] > positions[-1] + 1:
        raise ValueError(f"a text of {waiting[-1][0]} tokens does not fit into rows of {positions[-1] + 1}")
    rows = []
    while waiting:
        size = next(size for size in positions if size + 1 >= waiting[-1][0])
        rows += [(size, _fill(waiting, size + 1)) for _ in range(group)]
    return rows


def _fill(waiting: list[tuple[int, int]], room: int) -> list[int]:
    """Remove the texts of one row from those waiting, sorted pairs of length and number; return their numbers."""
    row = []
    while waiting and waiting[0][0] <= room:
        length, number = waiting.pop(bisect_right(waiting, room, key=lambda text: text[0]) - 1)
        row.append(number)
        room -= length
    return row


def rounded(positions: int) -> int:
    """Return a row length of at least so many positions; few lengths share their compiled programs."""
    step = max(_GRAIN, (1 << max(positions - 1, 1).bit_length() - 1) // 4)
    return -(-positions // step) * step


def longest_row(lengths: Lengths, context: int) -> int:
    """Return the positions of a row for the longest text.

    Rows are no longer than the model's context, by which some families scale their rotary positions.
    """
    needed = max(int(np.max(lengths)) - 1, 1)
    return max(needed, min(rounded(needed), context))


def row_lengths(longest: int, context: int) -> list[int]:
    """Return the row lengths that are considered for texts of which the longest needs a row of `longest` positions."""
    found, size = {longest}, _GRAIN
    while size <= min(max(longest, _SHORT), context):
        found.add(size)
        size = rounded(size + 1)
    return sorted(found)


def choose_packing(lengths: Lengths, shard: int, *, group: int, at_once: int, context: int, attention: int) -> Packing:
    """Return the packing that costs least for a data set, judged by a few of its shards.

    Args:
      lengths: tokens of each text.
      shard: texts that are packed together.
      group: devices that texts are spread over; each batch has a multiple of so many rows.
      at_once: positions of a batch, at most, but for a group of single rows.
      context: the model's.
      attention: a row of so many positions spends as much time on attention as on all else.
    """
    if len(lengths) == 0:
        return Packing((_GRAIN,), (group,), group)
    longest, count = longest_row(lengths, context), -(-len(lengths) // shard)
    sample = sorted({count * i // _SAMPLE for i in range(_SAMPLE)})
    shards = [range(i * shard, min((i + 1) * shard, len(lengths))) for i in sample]
    weight = len(lengths) / sum(map(len, shards))
    best, lowest = None, float("inf")
    for common in row_lengths(longest, context):
        for positions in _sets_of_lengths(common, longest):
            packed = [Counter(size for size, _ in pack(lengths, numbers, positions, group)) for numbers in shards]
            for rows in _row_counts(group, at_once // common):
                packing = Packing(positions, rows, group)
                cost = _cost(packing, packed, attention, weight)
                if cost < lowest:
                    best, lowest = packing, cost
    assert best is not None  # there are row lengths
    return best


def _sets_of_lengths(common: int, longest: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of row lengths that begin with `common`."""
    if common >= longest:
        yield (common,)
        return
    yield common, longest
    middle = rounded(int((common * longest) ** 0.5))
    if common < middle < longest / 2:
        yield common, middle, longest


def _row_counts(group: int, most: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of the rows of a batch, of at most `most` rows (and at least a group)."""
    count = 1
    while count == 1 or count * group <= most:
        rows = count * group
        yield (rows,)
        if count > 1:
            yield rows, group
        if count > 4:
            yield rows, rows // 4, group
        count *= 2


def _cost(packing: Packing, packed: Sequence[Counter[int]], attention: int, weight: float) -> float:
    """Return the work of a data set, in positions, from the rows of each sampled shard by their length."""
    used: Counter[Shape] = Counter()
    for counts in packed:
        for positions, rows in counts.items():
            used += packing.shapes(positions, rows)
    passes = sum(n * (shape.size * (1 + shape.positions / attention) + _PASS) for shape, n in used.items())
    # Other data sets share the programs of round lengths.
    programs = sum(1 if shape.positions.bit_count() == 1 else 2 for shape in used)
    return weight * passes + _PROGRAM * programs


def choose_counts(needed: Iterable[int], positions: int) -> tuple[int, ...]:
    """Return up to three numbers of rows, rising, for batches that need these numbers of rows of `positions` positions.

    A further number is chosen only where it saves more than the compilation of its program costs.
    """
    tally = Counter(needed)
    chosen = [max(tally)]

    def computed(counts: Sequence[int]) -> int:
        return sum(times * min(count for count in counts if count >= rows) for rows, times in tally.items())

    while len(chosen) < 3:
        more = min(tally, key=lambda rows: computed([*chosen, rows]))
        if (computed(chosen) - computed([*chosen, more])) * positions < _PROGRAM:
            break
        chosen.append(more)
    return tuple(sorted(chosen))
