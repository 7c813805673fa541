"""The gate: a linear map from the base's final hidden state to one logit per expert; the base's own logit is 0."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from colm_jax.models.arrays import AnyArray


class Gate(nnx.Module):
    """Who writes the next token: P(Z = 0..M) = softmax(0, g_1..g_M), g = h W (paper, section 2.1). Float32."""

    def __init__(self, width: int, experts: int):
        self.kernel = nnx.Param(jnp.zeros((width, experts), jnp.float32), axes=("embed", "experts"))

    def __call__(self, hidden: Float[AnyArray, "*N D"]) -> Float[Array, "*N M"]:
        """Return gate logits g, float32."""
        return jnp.dot(hidden.astype(jnp.float32), self.kernel[...], precision=jax.lax.Precision.HIGHEST)


def log_writers(logits: Float[AnyArray, "*N M"]) -> Float[Array, "*N M+1"]:
    """Return log P(Z = 0..M) from gate logits, the base first."""
    base = jnp.zeros_like(logits[..., :1])
    return jax.nn.log_softmax(jnp.concatenate([base, logits], axis=-1), axis=-1)


def p_defer(logits: Float[AnyArray, "*N M"]) -> Float[Array, "*N"]:
    """Return P(Z ≠ 0): the probability that an expert writes."""
    return jax.nn.sigmoid(jax.nn.logsumexp(logits, axis=-1))
