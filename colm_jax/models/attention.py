"""Grouped-query causal attention over new tokens and, where there is one, a cache."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import AnyArray
from colm_jax.models.config import Temperature

# Cached keys and values, and how many of them each sequence has.
Past = tuple[Float[Array, "B K S h"], Float[Array, "B K S v"], Int[Array, "B"]]

_MASKED = -1e30  # finite: a row that is masked throughout gives a mean, not NaN


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
    window: int | Int[Array, ""] | None = None,
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
      segments: which of a packed row's texts each new token belongs to; it sees no other. None: one text a row.
      precision: of the matrix products.
    """
    batch, time, heads, head_dim = query.shape
    kv_heads, groups = key.shape[2], heads // key.shape[2]
    grouped = query.reshape(batch, time, kv_heads, groups, head_dim) * scale

    def masked(logits: Float[Array, "B K G T S"], seen: Bool[Array, "..."]) -> Float[Array, "B K G T S"]:
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        return jnp.where(seen, logits, _MASKED)

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
        old = _by_head(rows, old_keys, 3, precision, jnp.float32).reshape(*logits.shape[:-1], size)
        logits = jnp.concatenate([logits, masked(old, known[:, None, None])], axis=-1)  # scores: no copy of the cache
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(kv_heads, groups, 1, 1)
        logits = jnp.concatenate([logits, jnp.broadcast_to(sink, (*logits.shape[:-1], 1))], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights[..., :time], value, precision=precision)
    if past is not None:
        seen_old = weights[..., time : time + size].reshape(batch, kv_heads, groups * time, size)
        mixed = _by_head(seen_old, old_values.astype(value.dtype), 2, precision, value.dtype)
        out += mixed.reshape(batch, kv_heads, groups, time, -1).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, time, heads, value.shape[-1])


def _by_head(
    rows: Float[Array, "B K R _"],
    cache: Float[Array, "B K S h"],
    axis: int,
    precision: jax.lax.PrecisionLike,
    dtype: DTypeLike,
) -> Float[Array, "B K R _"]:
    """Return the product of each head's rows with its cache, summed over the cache's `axis`.

    In the memory order of the cache, and for one text without an axis for texts: in any other form XLA on CPU
    transposes the cache first, a copy of it in every step.
    """
    axes: tuple[int, ...] = (0, 1)
    if rows.shape[0] == 1:
        rows, cache, axis, axes = rows[0], cache[0], axis - 1, (0,)
    dimensions = (((rows.ndim - 1,), (axis,)), (axes, axes))
    out = jax.lax.dot_general(rows, cache, dimensions, precision=precision, preferred_element_type=dtype)
    return out if len(axes) == 2 else out[None]
