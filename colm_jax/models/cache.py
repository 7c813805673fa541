"""The KV cache: what a model has read of each sequence, and how far.

A pass over new tokens only *reads* the cache and returns the keys and values of those tokens (`KVRows`); `write` stores
them afterwards. So a pass can be inside `lax.cond` while the write is outside, and no branch ever returns (and
copies) a cache. Rows at or beyond a sequence's length are masked out of attention, so their contents do not matter.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from colm_jax.models.arrays import pytree
from colm_jax.models.config import ModelConfig
from colm_jax.models.ragged import Ragged
from colm_jax.parallel import spec_of

CACHE_AXES = ("slots", "kv_heads", "cache", "head_dim")
# Keys and values of each layer.
Buffers = tuple[tuple[Float[Array, "B K S h"], ...], tuple[Float[Array, "B K S v"], ...]]
BLOCK = 8  # rows that are stored at once, of several texts in one line


@pytree
@dataclass(frozen=True)
class KVRows:
    """Keys and values of T newly read tokens, one pair per layer."""

    keys: tuple[Float[Array, "B K T h"], ...]
    values: tuple[Float[Array, "B K T v"], ...]


@pytree
@dataclass(frozen=True)
class KVCache:
    """Keys and values of all tokens read so far, one pair per layer."""

    keys: tuple[Float[Array, "B K S h"], ...]  # RoPE already applied
    values: tuple[Float[Array, "B K S v"], ...]
    lengths: Int[Array, "B"]  # tokens read of each sequence

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        batch: int,
        size: int,
        dtype: DTypeLike,
        mesh: Mesh | AbstractMesh | None = None,
    ) -> "KVCache":
        """Return a cache of `size` positions. It must exceed the longest text by the longest chunk ever written to it.

        On a `mesh` it is split by heads where the model's keys and values are.
        """
        heads, *widths = config.cached
        keys, values = (
            tuple(_zeros((batch, heads, size, width), dtype, mesh) for _ in range(config.depth)) for width in widths
        )
        return cls(keys, values, lengths=jnp.zeros((batch,), jnp.int32))

    def write(self, rows: KVRows, count: Int[Array, "N"], slots: Int[Array, "N"] | None = None) -> "KVCache":
        """Store `rows` after the texts' lengths and lengthen them by `count` (0..T, the valid rows).

        The rows are those of all texts in order, or of the texts in `slots`. There is one `dynamic_update_slice` per
        text, in a `fori_loop`: a vmapped scatter costs several decode steps on CPU, and a Python loop dominates compile
        time. The trip count is deliberately a traced value: with a static count of 1, XLA would unroll the loop and
        copy the cache to order earlier reads before this write.
        """
        slots = jnp.arange(self.lengths.shape[0]) if slots is None else slots

        def put_row(i: Int[Array, ""], buffers: Buffers) -> Buffers:
            def put(buffer: Float[Array, "B K S h"], new: Float[Array, "N K T h"]) -> Float[Array, "B K S h"]:
                row = jax.lax.dynamic_slice_in_dim(new, i, 1).astype(buffer.dtype)
                return jax.lax.dynamic_update_slice(buffer, row, (slots[i], 0, self.lengths[slots[i]], 0))

            return jax.tree.map(put, buffers, (rows.keys, rows.values))

        rounds = jnp.where(jnp.any(count > 0), slots.shape[0], 0)
        keys, values = jax.lax.fori_loop(0, rounds, put_row, (self.keys, self.values))
        return KVCache(keys, values, self.lengths.at[slots].set(self.lengths[slots] + count))

    def write_line(self, rows: KVRows, ragged: Ragged) -> "KVCache":
        """Store the rows of several texts in one line, in blocks of BLOCK after each text's length.

        No more blocks than hold tokens: where nothing was read, nothing is written. The line is BLOCK places longer
        than its tokens, since a text's last block reaches beyond them.
        """
        blocks = -(-ragged.counts // BLOCK)
        ends = jnp.cumsum(blocks)

        def put_block(i: Int[Array, ""], buffers: Buffers) -> Buffers:
            b = jnp.sum(ends <= i)
            offset = BLOCK * (i - ends[b] + blocks[b])
            source, target = ragged.starts[b] + offset, self.lengths[b] + offset

            def put(buffer: Float[Array, "B K S h"], new: Float[Array, "1 K N h"]) -> Float[Array, "B K S h"]:
                block = jax.lax.dynamic_slice_in_dim(new, source, BLOCK, axis=2).astype(buffer.dtype)
                return jax.lax.dynamic_update_slice(buffer, block, (b, 0, target, 0))

            return jax.tree.map(put, buffers, (rows.keys, rows.values))

        keys, values = jax.lax.fori_loop(0, ends[-1], put_block, (self.keys, self.values))
        return KVCache(keys, values, self.lengths + ragged.counts)

    def of(self, slots: Int[Array, "N"]) -> "KVCache":
        """Return what was read of the texts in some slots."""
        return jax.tree.map(lambda x: x[slots], self)


def no_rows(config: ModelConfig, batch: int, time: int, dtype: DTypeLike) -> KVRows:
    """Return the rows of a pass that did not happen: what the idle branch of a `lax.cond` returns."""
    heads, *widths = config.cached
    keys, values = (
        tuple(jnp.zeros((batch, heads, time, width), dtype) for _ in range(config.depth)) for width in widths
    )
    return KVRows(keys, values)


def _zeros(shape: tuple[int, ...], dtype: DTypeLike, mesh: Mesh | AbstractMesh | None) -> Float[Array, "B K S _"]:
    where = None if mesh is None else NamedSharding(mesh, spec_of(mesh, CACHE_AXES, shape))
    return jnp.zeros(shape, dtype, device=where)
