"""Bounds of decoding: what a piece of work must move and compute, and how long this machine needs for it at least."""

from dataclasses import dataclass

import jax
from flax import nnx

from colm_jax.models.decoder import Decoder


@dataclass(frozen=True)
class Limits:
    """What the machine reaches on simple programs of the same type."""

    bytes_per_second: float  # read from memory
    flops_per_second: float  # of large matrix products

    def seconds(self, work: "Traffic") -> float:
        """Return the least seconds of some work: moving its bytes or computing, whichever takes longer."""
        return max(work.moved / self.bytes_per_second, work.flops / self.flops_per_second)


@dataclass(frozen=True)
class Traffic:
    """The bytes that must be read, and the floating-point operations of the products with weights."""

    moved: float
    flops: float


@dataclass(frozen=True)
class ModelSize:
    """What a pass of a model reads: all weights but the embedding table, of which it reads a few rows, and caches."""

    weights: int
    head: int  # of these, how many are the head's
    weight_bytes: int
    position_bytes: int  # keys and values of a position

    @classmethod
    def of(cls, decoder: Decoder) -> "ModelSize":
        """Return the size of an untied model."""
        leaves, table = jax.tree.leaves(nnx.state(decoder)), decoder.embedding[...]
        return cls(
            weights=sum(leaf.size for leaf in leaves) - table.size,
            head=table.size,
            weight_bytes=sum(leaf.nbytes for leaf in leaves) - table.nbytes,
            position_bytes=decoder.config.cache_width * decoder.dtype.itemsize,
        )

    def reading(self, tokens: int, positions: float = 0, chosen: int | None = None) -> Traffic:
        """Return the work of one pass over so many tokens, after so many cached positions of all sequences together.

        The head is applied to `chosen` of them; None: to all.
        """
        applied = (self.weights - self.head) * tokens + self.head * (tokens if chosen is None else chosen)
        return Traffic(self.weight_bytes + positions * self.position_bytes, 2.0 * applied)
