"""Grouped-query causal attention over new tokens and, where there is one, a cache.

Short texts have all their scores at once, the plain form. Longer ones, whose scores would take memory in proportion to
T², have the kernel of their platform (`causal.py`). A large cache is read by blocks, as far as it is filled
(`blockwise.py`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import AnyArray
from colm_jax.models.blockwise import MASKED, Past, Scoring, Softmax, added, by_head, over_cache, started
from colm_jax.models.causal import WindowChoice, causal_attention, causal_with_total
from colm_jax.models.config import Temperature

# Measured on CPU (docs/benchmarks.md); accelerators need the long forms for their memory.
_SHORT = 128  # tokens of texts whose scores are all computed at once
_PASS = 64  # new tokens from which on a filled cache is read by blocks
_SMALL = 2048  # positions of a cache that fewer new tokens read as a whole


def positions_in(segments: Int[AnyArray, "B T"]) -> Int[Array, "B T"]:
    """Return each token's place in its own text, for rows in which texts follow one another."""
    places = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return places - jax.lax.cummax(jnp.where(first, places, 0), axis=1)


def temperatures(positions: Int[Array, "B T"], temperature: Temperature) -> Float[Array, "B T"]:
    """Return the factor of each token's queries, float32 (scalable softmax, arXiv 2501.19399, as Llama 4 has it)."""
    steps = jnp.floor((positions + temperature.offset).astype(jnp.float32) / temperature.span)
    return 1.0 + temperature.scale * jnp.log1p(steps)


def attend(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    past: Past | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | WindowChoice | None = None,
    chunked: bool = False,
    sinks: Float[Array, "H"] | None = None,
    segments: Int[AnyArray, "B T"] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H v"]:
    """Attend from each new token to the cached tokens (`past`: keys, values, lengths) and to the new ones up to itself.

    Right padding needs no mask: no real token attends to a later one. Softmax in float32.

    Args:
      query: of the new tokens.
      key: likewise.
      value: likewise.
      past: what was read before.
      scale: of query · key.
      softcap: scores become softcap · tanh(score / softcap).
      window: how many tokens each one sees, itself included; None: all.
      chunked: the windows are chunks that begin at its multiples; a token sees those of its own chunk.
      sinks: logits that take part in each head's softmax and have no value (gpt-oss).
      segments: which of a packed row's texts, which follow one another, each new token belongs to; it sees no other.
        None: one text a row.
      precision: of the matrix products.
    """
    scoring, query = Scoring(softcap, precision), query * scale
    time, size = query.shape[1], 0 if past is None else past[0].shape[2]
    if size == 0 and time > _SHORT:
        if chunked:
            segments, window = _chunks(query, window, segments, None), None
        return causal_attention(query, key, value, scoring=scoring, window=window, sinks=sinks, segments=segments)
    at_once = partial(plain, softcap=softcap, window=_size(window), chunked=chunked, precision=precision)
    by_blocks = partial(_by_blocks, scoring=scoring, window=window, chunked=chunked)
    if past is not None and time >= _PASS and time + size > _SHORT:
        return by_blocks(query, key, value, past, sinks)
    if past is not None and size >= _SMALL:

        def on_cpu(query: Any, key: Any, value: Any, past: Any, sinks: Any) -> Any:
            """A slice of a cache is a copy there: reading all of it costs as much as half of it by blocks."""
            most = jnp.max(past[2])
            return jax.lax.cond(2 * most > size, at_once, by_blocks, query, key, value, past, sinks)

        return jax.lax.platform_dependent(query, key, value, past, sinks, cpu=on_cpu, default=by_blocks)
    return at_once(query, key, value, past, sinks, segments)


def _size(window: int | WindowChoice | None) -> int | Int[Array, ""] | None:
    return window.size if isinstance(window, WindowChoice) else window


def _chunks(
    like: Float[Array, "B T H h"],
    window: int | WindowChoice | None,
    segments: Int[AnyArray, "B T"] | None,
    lengths: Int[Array, "B"] | None,
) -> Int[Array, "B T"] | None:
    """Return which chunk of which text each token is in: chunks are to attention what texts in one row are."""
    size = _size(window)
    if size is None:
        return None if segments is None else jnp.asarray(segments)
    places = jnp.arange(like.shape[1])
    if segments is not None:
        places = positions_in(segments)
    elif lengths is not None:
        places = lengths[:, None] + places
    places = jnp.broadcast_to(places, like.shape[:2])
    begins = places % size == 0
    if segments is not None:
        begins |= places == 0
    return jnp.cumsum(begins, axis=1).astype(jnp.int32)


def _by_blocks(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    past: Past,
    sinks: Float[Array, "H"] | None,
    *,
    scoring: Scoring,
    window: int | WindowChoice | None,
    chunked: bool,
) -> Float[Array, "B T H v"]:
    """Attend to new tokens, then to the blocks of the cache that hold any. Has no gradient."""
    (batch, time, heads, _), kv_heads, width = query.shape, key.shape[2], value.shape[-1]
    own, sizes = (_chunks(query, window, None, past[2]), None) if chunked else (None, window)

    def by_kv_head(x: Float[Array, "B T N d"]) -> Float[Array, "B K R d"]:
        apart = x.reshape(batch, time, kv_heads, -1, x.shape[-1])
        return apart.swapaxes(1, 2).reshape(batch, kv_heads, -1, x.shape[-1])

    rows = by_kv_head(query)
    limit = _size(window)
    if time > _SHORT:
        out, total = causal_with_total(query, key, value, scoring=scoring, window=sizes, sinks=sinks, segments=own)
        totals = by_kv_head(total[..., None])[..., 0]
        state = Softmax(totals, jnp.ones_like(totals), by_kv_head(out.astype(jnp.float32)))
    else:
        places = jnp.arange(time)
        seen = (places[:, None] >= places)[None]
        if own is not None:
            seen = seen & (own[:, :, None] == own[:, None, :])
        elif limit is not None:
            seen = seen & (places[:, None] - places < limit)
        start = started(sinks, batch, kv_heads, rows.shape[2], width)
        state = added(scoring, start, rows, by_kv_head(key), by_kv_head(value), seen)
    state = over_cache(scoring, state, rows, past, limit, chunked, time)
    out = state.finished()[0].astype(value.dtype).reshape(batch, kv_heads, time, -1, width)
    return out.swapaxes(1, 2).reshape(batch, time, heads, width)


def plain(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K v"],
    past: Past | None = None,
    sinks: Float[Array, "H"] | None = None,
    segments: Int[AnyArray, "B T"] | None = None,
    *,
    softcap: float | None = None,
    window: int | Int[Array, ""] | None = None,
    chunked: bool = False,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H v"]:
    """Return `attend` of scaled queries, with all scores at once."""
    batch, time, heads, head_dim = query.shape
    kv_heads, groups = key.shape[2], heads // key.shape[2]
    grouped = query.reshape(batch, time, kv_heads, groups, head_dim)

    def masked(logits: Float[Array, "B K G T S"], seen: Bool[Array, "..."]) -> Float[Array, "B K G T S"]:
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        return jnp.where(seen, logits, MASKED)

    def within(places: Int[Array, "*N T 1"], others: Int[Array, "*N 1 S"]) -> Bool[Array, "..."]:
        """Return whether tokens at these places see those at other, earlier ones, by their window."""
        if window is None:
            return jnp.ones((), bool)
        return places // window == others // window if chunked else places - others < window

    places = jnp.arange(time)
    own = places  # where each new token is: chunks need its place in its text, windows only distances
    if chunked and segments is not None:
        own = positions_in(segments)
    elif chunked and past is not None:
        own = past[2][:, None] + places
    seen = (places[:, None] >= places) & within(own[..., :, None], own[..., None, :])  # [T, T] or [B, T, T]
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    if seen.ndim == 3:
        seen = seen[:, None, None]
    new = jnp.einsum("btkgh,bskh->bkgts", grouped, key, precision=precision, preferred_element_type=jnp.float32)
    logits = masked(new, seen)
    size = 0 if past is None else past[0].shape[2]
    if past is not None:
        old_keys, old_values, lengths = past
        old_places = jnp.arange(size)
        known = (old_places < lengths[:, None])[:, None, :] & within(
            (lengths[:, None] + places)[:, :, None], jnp.broadcast_to(old_places, (batch, 1, size))
        )
        rows = grouped.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, groups * time, head_dim)
        old = by_head(rows, old_keys, 3, precision, jnp.float32).reshape(*logits.shape[:-1], size)
        logits = jnp.concatenate([logits, masked(old, known[:, None, None])], axis=-1)  # scores: no copy of the cache
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(kv_heads, groups, 1, 1)
        logits = jnp.concatenate([logits, jnp.broadcast_to(sink, (*logits.shape[:-1], 1))], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights[..., :time], value, precision=precision)
    if past is not None:
        seen_old = weights[..., time : time + size].reshape(batch, kv_heads, groups * time, size)
        mixed = by_head(seen_old, old_values.astype(value.dtype), 2, precision, value.dtype)
        out += mixed.reshape(batch, kv_heads, groups, time, -1).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, time, heads, value.shape[-1])
