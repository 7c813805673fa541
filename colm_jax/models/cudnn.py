"""Attention on GPU by cuDNN, through `jax.nn.dot_product_attention`, where it applies.

It takes neither sinks nor soft caps. Texts in one row need a mask [T, T] per row, so that very long rows are left
to `blockwise`. The gradient runs the forward pass once more: its statistics are not JAX's to return.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from colm_jax.models.arrays import AnyArray
from colm_jax.models.blockwise import Scoring

_WIDEST = 128  # head dimension that it takes on any GPU
_MASK = 512 * 2**20  # bytes of a mask at most
_MULTIPLE = 64  # of tokens


def applies(
    scoring: Scoring,
    windows: tuple[int | None, ...],
    query: Float[Array, "B T H h"],
    value: Float[Array, "B T K v"],
    segments: Int[AnyArray, "B T"] | None,
) -> bool:
    """Return whether this host has cuDNN, and it takes these."""
    batch, time, _, width = query.shape
    return (
        jax.default_backend() == "gpu"  # JAX traces every platform's form, and this one only where there is cuDNN
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and width == value.shape[-1] <= _WIDEST
        and width % 8 == 0
        and scoring.softcap is None
        and len(windows) == 1
        and (segments is None or 2 * batch * time**2 <= _MASK)
    )


def forward(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K h"],
    window: int | None,
    segments: Int[AnyArray, "B T"] | None,
) -> Float[Array, "B T H h"]:
    """Return causal attention; arguments as of `blockwise.forward`."""
    time = query.shape[1]

    def padded(x: Shaped[AnyArray, "B T *N"]) -> Shaped[Array, "B T1 *N"]:
        return jnp.pad(x, ((0, 0), (0, -time % _MULTIPLE), *((0, 0),) * (x.ndim - 2)))

    mask, local = None, None if window is None else (window - 1, 0)
    if segments is not None:
        texts, places = padded(segments), jnp.arange(time + -time % _MULTIPLE)
        mask = texts[:, :, None] == texts[:, None, :]
        if window is not None:
            mask, local = mask & (places[:, None] - places < window), None
        mask = mask[:, None]
    out = jax.nn.dot_product_attention(
        padded(query),
        padded(key),
        padded(value),
        mask=mask,
        scale=1.0,
        is_causal=True,
        local_window_size=local,
        implementation="cudnn",
    )
    return out[:, :time]


def backward(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K h"],
    window: int | None,
    segments: Int[AnyArray, "B T"] | None,
    slope: Float[Array, "B T H h"],
) -> tuple[Float[Array, "B T H h"], Float[Array, "B T K h"], Float[Array, "B T K h"]]:
    """Return the gradients for query, key and value."""
    return jax.vjp(partial(forward, window=window, segments=segments), query, key, value)[1](slope)
