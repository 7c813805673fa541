"""The positions that count, of all training texts in a row: what the gate is fitted to, a chunk at a time.

Hidden states stay on disk, mapped into memory; the few numbers a position that scoring and labels give are held.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from colm_jax.models.arrays import pytree

CHUNK = 8192  # positions of one pass through the device


@pytree
@dataclass(frozen=True)
class Rows:
    """Some positions. The last of them may only fill the shape: zeros, where `mask` is false."""

    mask: Bool[np.ndarray, "N"]
    hidden: Float[np.ndarray, "N D"]  # what the gate reads: the base's final hidden states (and more), float32
    base_log_prob: Float[np.ndarray, "N"]  # of the text's own token, nats
    expert_log_probs: Float[np.ndarray, "N M"] | None  # None where experts score online: only labels are fitted then
    labels: Bool[np.ndarray, "N M"]  # weak labels
    responsibilities: Float[np.ndarray, "N W"] | None  # P(Z = z | text), where they are held fixed


@dataclass(frozen=True)
class Positions:
    """All positions. Fields are those of `Rows`, but for the hidden states."""

    hidden: tuple[Float[np.ndarray, "_ D"], ...]  # shards, in order; memory maps
    base_log_prob: Float[np.ndarray, "N"]
    expert_log_probs: Float[np.ndarray, "N M"] | None
    labels: Bool[np.ndarray, "N M"]
    responsibilities: Float[np.ndarray, "N W"] | None = None
    known: Bool[np.ndarray, "N"] | None = None  # where the labels are known; None: everywhere
    chunk: int = CHUNK

    @property
    def count(self) -> int:
        """N."""
        return len(self.base_log_prob)

    @property
    def counted(self) -> int:
        """How many of them count in the loss."""
        return self.count if self.known is None else int(self.known.sum())

    @property
    def shape(self) -> tuple[int, int]:
        """Of the gate's kernel: what it reads, M."""
        return self.hidden[0].shape[1], self.labels.shape[1]

    def take(self, rows: Int[np.ndarray, "rows"], size: int) -> Rows:
        """Return the positions of these numbers, filled up to `size`."""

        def padded(values: Shaped[np.ndarray, "N ..."]) -> Shaped[np.ndarray, "size ..."]:
            taken = values[rows]
            return np.pad(taken, ((0, size - len(taken)), *((0, 0),) * (taken.ndim - 1)))

        hidden = np.zeros((size, self.shape[0]), np.float32)
        first = 0
        for shard in self.hidden:
            here = np.flatnonzero((rows >= first) & (rows < first + len(shard)))
            if len(here):
                hidden[here] = shard[rows[here] - first]
            first += len(shard)
        return Rows(
            mask=np.arange(size) < len(rows) if self.known is None else padded(self.known),
            hidden=hidden,
            base_log_prob=padded(self.base_log_prob),
            expert_log_probs=None if self.expert_log_probs is None else padded(self.expert_log_probs),
            labels=padded(self.labels),
            responsibilities=None if self.responsibilities is None else padded(self.responsibilities),
        )

    def chunks(self) -> Iterator[tuple[slice, Rows]]:
        """Return all positions in order, each chunk with its place; all of one shape, so that one compiled program
        serves.
        """
        size = min(self.chunk, self.count)
        for first in range(0, self.count, size):
            place = slice(first, min(first + size, self.count))
            yield place, self.take(np.arange(place.start, place.stop), size)
