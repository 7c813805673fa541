"""Attention by blocks of keys with an online softmax: memory in proportion to T, on any back end.

The scores of one block of queries with one block of keys are all that exists at a time (FlashAttention, arXiv
2205.14135). For each query the largest score so far, the sum of the exponentials, and the weighted sum of values are
updated block by block. The backward pass computes each block of scores once more from the log-sum-exp that was kept.
Blocks that no query of a block may see (later ones, those beyond the window, other texts) are skipped.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import AnyArray

MASKED = -1e30  # finite: a row that is masked throughout gives a mean, not NaN
# Scores of a block of queries with a block of keys, of all texts and heads: few on CPU, where larger arrays cost page
# faults at every step; many on accelerators, where a step costs several launches.
FEW, MANY = 2**21, 2**26
_LEAST, _MOST = 64, 512  # tokens of a block
_STEPS = 8  # in which a decode step reads a full cache: an accelerator has a fixed cost for each

Window = int | Int[Array, ""] | None  # tokens that each one sees, itself included; None: all
# Cached keys and values, and how many of them each sequence has.
Past = tuple[Float[Array, "B K S h"], Float[Array, "B K S v"], Int[Array, "B"]]


@dataclass(frozen=True)
class Scoring:
    """How scores are computed; static."""

    softcap: float | None = None  # scores become softcap · tanh(score / softcap)
    precision: jax.lax.PrecisionLike = None  # of the matrix products


class Softmax(NamedTuple):
    """The state of an online softmax over R rows of queries for each head of keys, float32."""

    largest: Float[Array, "B K R"]
    total: Float[Array, "B K R"]  # of exp(score - largest)
    mixed: Float[Array, "B K R v"]  # sum of the values, so weighted

    def finished(self) -> tuple[Float[Array, "B K R v"], Float[Array, "B K R"]]:
        """Return the weighted mean of the values, and the log-sum-exp of the scores."""
        return self.mixed / self.total[..., None], self.largest + jnp.log(self.total)


def by_head(
    rows: Float[Array, "B K R _"],
    keys: Float[Array, "B K S _"],
    axis: int,
    precision: jax.lax.PrecisionLike,
    dtype: DTypeLike,
) -> Float[Array, "B K R _"]:
    """Return the product of each head's rows with its keys or values, summed over their `axis`.

    In the memory order of the cache, and for one text without an axis for texts: in any other form XLA on CPU
    transposes the cache first, a copy of it in every step.
    """
    axes: tuple[int, ...] = (0, 1)
    if rows.shape[0] == 1:
        rows, keys, axis, axes = rows[0], keys[0], axis - 1, (0,)
    dimensions = (((rows.ndim - 1,), (axis,)), (axes, axes))
    out = jax.lax.dot_general(rows, keys, dimensions, precision=precision, preferred_element_type=dtype)
    return out if len(axes) == 2 else out[None]


def _scores(scoring: Scoring, rows: Float[Array, "B K R h"], keys: Float[Array, "B K S h"]) -> Float[Array, "B K R S"]:
    scores = by_head(rows, keys, 3, scoring.precision, jnp.float32)
    return scores if scoring.softcap is None else scoring.softcap * jnp.tanh(scores / scoring.softcap)


def _masked(scores: Float[Array, "B K R S"], seen: Bool[Array, "_ T S"]) -> Float[Array, "B K R S"]:
    """Mask scores whose rows are T tokens of several heads each, by what each token sees."""
    batch, heads, _, keys = scores.shape
    apart = scores.reshape(batch, heads, seen.shape[1], -1, keys)
    return jnp.where(seen[:, None, :, None], apart, MASKED).reshape(scores.shape)


def added(
    scoring: Scoring,
    state: Softmax,
    rows: Float[Array, "B K R h"],
    keys: Float[Array, "B K S h"],
    values: Float[Array, "B K S v"],
    seen: Bool[Array, "_ T S"],
) -> Softmax:
    """Return the state after another block of keys."""
    scores = _masked(_scores(scoring, rows, keys), seen)
    largest = jnp.maximum(state.largest, jnp.max(scores, axis=-1))
    weights, shrink = jnp.exp(scores - largest[..., None]), jnp.exp(state.largest - largest)
    new = by_head(weights.astype(values.dtype), values, 2, scoring.precision, jnp.float32)
    return Softmax(largest, state.total * shrink + jnp.sum(weights, axis=-1), state.mixed * shrink[..., None] + new)


def started(sinks: Float[Array, "H"] | None, batch: int, heads: int, rows: int, width: int) -> Softmax:
    """Return the state before the first key: nothing, or the sinks' logits. Rows are tokens of several heads each."""
    shape = (batch, heads, rows)
    nothing = jnp.zeros((*shape, width), jnp.float32)
    if sinks is None:
        return Softmax(jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32), nothing)
    each = jnp.tile(sinks.astype(jnp.float32).reshape(heads, -1), (1, rows * heads // sinks.shape[0]))
    return Softmax(jnp.broadcast_to(each, shape), jnp.ones(shape, jnp.float32), nothing)


def block_size(scores: int, heads: int, queries: int | None = None) -> int:
    """Return the tokens of a block of keys, a power of two; blocks of queries are as large, unless given."""
    size = _MOST
    while size > _LEAST and heads * size * (queries or size) > scores:
        size //= 2
    return size


class _Blocks:
    """Queries, keys and values [B, K, T, ...] in blocks, and which of them see each other."""

    def __init__(
        self, query: Float[Array, "B T H h"], window: Window, segments: Int[AnyArray, "B T"] | None, scores: int
    ):
        batch, time, heads, _ = query.shape
        self.size = min(block_size(scores, batch * heads), -(-time // _LEAST) * _LEAST)
        self.time, self.window, self.number = time, window, -(-time // self.size)
        self.padded = self.number * self.size
        places = jnp.arange(self.padded)
        earliest = jnp.zeros((1, self.padded), jnp.int32)
        self.segments = None
        if segments is not None:
            self.segments = jnp.pad(segments, ((0, 0), (0, self.padded - time)), mode="edge")
            first = self.segments[:, 1:] != self.segments[:, :-1]
            starts = jnp.where(jnp.pad(first, ((0, 0), (1, 0)), constant_values=True), places, 0)
            earliest = jax.lax.cummax(starts, axis=1).astype(jnp.int32)
        if window is not None:
            earliest = jnp.maximum(earliest, places - window + 1).astype(jnp.int32)
        self.first = jnp.min(earliest.reshape(-1, self.number, self.size), axis=(0, 2)) // self.size

    def pad(self, x: Float[Array, "B T *N"]) -> Float[Array, "B padded *N"]:
        return jnp.pad(x, ((0, 0), (0, self.padded - self.time), *((0, 0),) * (x.ndim - 2)))

    def by_kv_head(self, x: Float[Array, "B T N d"], kv_heads: int) -> Float[Array, "B K R d"]:
        """Return rows of each head of keys, padded: of queries, several for each token."""
        batch, _, heads, width = x.shape
        apart = self.pad(x).reshape(batch, self.padded, kv_heads, heads // kv_heads, width)
        return apart.swapaxes(1, 2).reshape(batch, kv_heads, -1, width)

    def by_token(self, rows: Float[Array, "B K R d"]) -> Float[Array, "B T N d"]:
        """Return the way back."""
        batch, kv_heads, _, width = rows.shape
        apart = rows.reshape(batch, kv_heads, self.padded, -1, width).swapaxes(1, 2)
        return apart.reshape(batch, self.padded, -1, width)[:, : self.time]

    def take(self, rows: Float[Array, "B K R *N"], i: Int[Array, ""]) -> Float[Array, "B K R1 *N"]:
        height = rows.shape[2] // self.number
        return jax.lax.dynamic_slice_in_dim(rows, i * height, height, axis=2)

    def put(
        self, rows: Float[Array, "B K R *N"], block: Float[Array, "B K R1 *N"], i: Int[Array, ""]
    ) -> Float[Array, "B K R *N"]:
        return jax.lax.dynamic_update_slice_in_dim(rows, block, i * block.shape[2], axis=2)

    def seen(self, i: Int[Array, ""], j: Int[Array, ""]) -> Bool[Array, "_ T S"]:
        """Return which tokens of block i see which of block j."""
        own, others = (block * self.size + jnp.arange(self.size) for block in (i, j))
        seen = own[:, None] >= others
        if self.window is not None:
            seen = seen & (own[:, None] - others < self.window)
        if self.segments is None:
            return seen[None]
        texts, others = (
            jax.lax.dynamic_slice_in_dim(self.segments, block * self.size, self.size, axis=1) for block in (i, j)
        )
        return seen & (texts[:, :, None] == others[:, None, :])


def forward(
    scoring: Scoring,
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    window: Window,
    sinks: Float[Array, "H"] | None,
    segments: Int[AnyArray, "B T"] | None,
    scores: int,
) -> tuple[Float[Array, "B T H v"], Float[Array, "B T H"]]:
    """Return causal attention and the log-sum-exp of each row's scores, float32.

    Args:
      scoring: how scores are computed.
      query: scaled.
      key: of the same tokens.
      value: likewise.
      window: how many tokens each one sees.
      sinks: logits that take part in each head's softmax and have no value.
      segments: which of its row's texts each token belongs to; the tokens of a text follow one another.
      scores: FEW or MANY.
    """
    batch, kv_heads, width = query.shape[0], key.shape[2], value.shape[-1]
    blocks = _Blocks(query, window, segments, scores)
    rows, keys, values = (blocks.by_kv_head(x, kv_heads) for x in (query, key, value))
    height = rows.shape[2] // blocks.number
    start = started(sinks, batch, kv_heads, height, width)

    def of_queries(i: Int[Array, ""], done: tuple[Any, Any]) -> tuple[Any, Any]:
        own = blocks.take(rows, i)

        def of_keys(j: Int[Array, ""], state: Softmax) -> Softmax:
            return added(scoring, state, own, blocks.take(keys, j), blocks.take(values, j), blocks.seen(i, j))

        out, total = jax.lax.fori_loop(blocks.first[i], i + 1, of_keys, start).finished()
        return blocks.put(done[0], out.astype(value.dtype), i), blocks.put(done[1], total, i)

    empty = jnp.zeros((*rows.shape[:3], width), value.dtype), jnp.zeros(rows.shape[:3], jnp.float32)
    out, total = jax.lax.fori_loop(0, blocks.number, of_queries, empty)
    return blocks.by_token(out), blocks.by_token(total[..., None])[..., 0]


def backward(
    scoring: Scoring,
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    window: Window,
    segments: Int[AnyArray, "B T"] | None,
    out: Float[Array, "B T H v"],
    total: Float[Array, "B T H"],
    slope: Float[Array, "B T H v"],
    scores: int,
) -> tuple[Float[Array, "B T H h"], Float[Array, "B T K h"], Float[Array, "B T K v"]]:
    """Return the gradients for query, key and value.

    Args:
      scoring: how scores are computed.
      query: as of `forward`.
      key: likewise.
      value: likewise.
      window: likewise.
      segments: likewise.
      out: what `forward` returned.
      total: the log-sum-exp that it returned.
      slope: the gradient for `out`.
      scores: as of `forward`.
    """
    kv_heads = key.shape[2]
    blocks = _Blocks(query, window, segments, scores)
    share = jnp.sum(out.astype(jnp.float32) * slope.astype(jnp.float32), axis=-1)
    rows, keys, values, slopes = (blocks.by_kv_head(x, kv_heads) for x in (query, key, value, slope))
    totals, shares = (blocks.by_kv_head(x[..., None], kv_heads)[..., 0] for x in (total, share))

    def times(x: Float[Array, "B K _ _"], y: Float[Array, "B K _ _"], axes: tuple[int, int]) -> Float[Array, "B K _ _"]:
        dimensions = (((axes[0],), (axes[1],)), ((0, 1), (0, 1)))
        return jax.lax.dot_general(
            x.astype(y.dtype), y, dimensions, precision=scoring.precision, preferred_element_type=jnp.float32
        )

    def of_queries(i: Int[Array, ""], done: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        own, slope, total, share = (blocks.take(x, i) for x in (rows, slopes, totals, shares))

        def of_keys(j: Int[Array, ""], so_far: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            to_own, to_keys, to_values = so_far
            key, value = blocks.take(keys, j), blocks.take(values, j)
            logits = _scores(scoring, own, key)
            weights = jnp.exp(_masked(logits, blocks.seen(i, j)) - total[..., None])
            to_scores = weights * (times(slope, value, (3, 3)) - share[..., None])
            if scoring.softcap is not None:
                to_scores *= 1 - (logits / scoring.softcap) ** 2
            to_value, to_key = times(weights, slope, (2, 2)), times(to_scores, own, (2, 2))
            return (
                to_own + times(to_scores, key, (3, 2)),
                blocks.put(to_keys, blocks.take(to_keys, j) + to_key, j),
                blocks.put(to_values, blocks.take(to_values, j) + to_value, j),
            )

        start = jnp.zeros(own.shape, jnp.float32), done[1], done[2]
        to_own, to_keys, to_values = jax.lax.fori_loop(blocks.first[i], i + 1, of_keys, start)
        return blocks.put(done[0], to_own.astype(query.dtype), i), to_keys, to_values

    empty = jnp.zeros_like(rows), jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    to_rows, to_keys, to_values = map(blocks.by_token, jax.lax.fori_loop(0, blocks.number, of_queries, empty))
    return to_rows, to_keys.astype(key.dtype), to_values.astype(value.dtype)


def over_cache(
    scoring: Scoring,
    state: Softmax,
    rows: Float[Array, "B K R h"],
    past: Past,
    window: Window,
    chunked: bool,
    time: int,
) -> Softmax:
    """Return the state after the cached tokens; only blocks that hold tokens that a query may see are read.

    Args:
      scoring: how scores are computed.
      state: after the new tokens.
      rows: queries of `time` new tokens, scaled, several for each of them.
      past: keys, values and lengths.
      window: how many tokens each one sees.
      chunked: the windows are chunks that begin at its multiples.
      time: new tokens of each text.
    """
    keys, values, lengths = past
    length = keys.shape[2]
    size = max(block_size(FEW, rows.shape[0] * rows.shape[1], rows.shape[2]), length // _STEPS if time < _LEAST else 1)
    size = min(size, length)
    places = lengths[:, None] + jnp.arange(time)  # of the queries
    earliest = jnp.zeros_like(places)
    if window is not None:
        earliest = (places // window * window if chunked else jnp.maximum(places - window + 1, 0)).astype(places.dtype)

    def of_keys(j: Int[Array, ""], state: Softmax) -> Softmax:
        start = jnp.minimum(j * size, length - size)  # the last block overlaps the one before
        own, mixed = (jax.lax.dynamic_slice_in_dim(x, start, size, axis=2) for x in (keys, values))
        others = start + jnp.arange(size)
        known = (others >= j * size) & (others < lengths[:, None])
        seen = known[:, None, :] & (others >= earliest[..., None])
        return added(scoring, state, rows, own, mixed.astype(rows.dtype), seen)

    return jax.lax.fori_loop(jnp.min(earliest) // size, -(-jnp.max(lengths) // size), of_keys, state)
