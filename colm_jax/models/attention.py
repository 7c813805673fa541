"""Grouped-query causal attention with rotary positions, over new tokens and, where there is one, a cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_MASKED = -1e30  # finite: a row that is masked throughout gives a mean, not NaN


def rope_angles(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Float[Array, "B T h2"]:
    """Rotation angles in radians, float32, of each position and pair of dimensions (Su et al. 2021, eq. 15)."""
    frequencies = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(x: Float[Array, "B T N h"], angles: Float[Array, "B T h2"]) -> Float[Array, "B T N h"]:
    """Applies RoPE in the half-split layout of Hugging Face checkpoints: dimension i turns with i + h/2."""
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K h"],
    past: tuple[Float[Array, "B K S h"], Float[Array, "B K S h"], Int[Array, "B"]] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H h"]:
    """Each new token attends to the cached tokens (`past`: keys, values, lengths) and to the new ones up to itself.

    Right padding needs no mask: no real token attends to a later one. Softmax in float32.
    """
    batch, time, heads, head_dim = query.shape
    groups = heads // key.shape[2]
    grouped = query.reshape(batch, time, key.shape[2], groups, head_dim) * head_dim**-0.5

    def scores(equation: str, keys):
        return jnp.einsum(equation, grouped, keys, precision=precision, preferred_element_type=jnp.float32)

    causal = jnp.tril(jnp.ones((time, time), bool))
    logits = jnp.where(causal, scores("btkgh,bskh->bkgts", key), _MASKED)
    if past is not None:
        old_keys, old_values, lengths = past
        known = jnp.arange(old_keys.shape[2]) < lengths[:, None]
        old = jnp.where(known[:, None, None, None, :], scores("btkgh,bksh->bkgts", old_keys), _MASKED)
        logits = jnp.concatenate([logits, old], axis=-1)  # scores only: the cache itself is never copied
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights[..., :time], value, precision=precision)
    if past is not None:
        out += jnp.einsum("bkgts,bksh->btkgh", weights[..., time:], old_values.astype(value.dtype), precision=precision)
    return out.reshape(batch, time, heads, head_dim)
