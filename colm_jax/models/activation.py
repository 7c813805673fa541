"""The gated unit of feed-forward layers: what becomes of a gate and what it lets through."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from colm_jax.models.config import ModelConfig


def gated(config: ModelConfig, gate: Float[Array, "*N F"], up: Float[Array, "*N F"]) -> Float[Array, "*N F"]:
    """Return activation(gate) · up, with SiLU or GELU's tanh approximation.

    "clamped_swish" (gpt-oss) clamps both at `activation_limit`, the gate only from above, and returns
    gate · sigmoid(activation_slope · gate) · (up + 1).
    """
    if config.activation == "silu":
        return jax.nn.silu(gate) * up
    if config.activation == "gelu_tanh":
        return jax.nn.gelu(gate, approximate=True) * up
    limit, slope = config.activation_limit, config.activation_slope
    assert limit is not None and slope is not None
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(slope * gate) * (up + 1)
