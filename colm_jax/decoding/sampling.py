"""Taking a token from weights over the vocabulary: argmax, or temperature, top-k, top-p, min-p and a request's key."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from colm_jax.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are taken; temperature 0 is argmax, and the rest then has no effect."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # tokens at least so probable as this share of the most probable one's probability

    def __post_init__(self):
        """Rejects settings that cannot be meant."""
        if not self.temperature >= 0:
            raise UserError(f"temperature must be at least 0, got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise UserError(f"top_k must be a whole number of at least 0, got {self.top_k!r}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be at least 0 and at most 1, got {self.min_p!r}")


def take(logits: Float[Array, "B V"], keys: Array, sampling: Sampling) -> Int[Array, "B"]:
    """One id per sequence. `keys` [B]: a PRNG key for each, so that a draw never depends on batch mates."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k:
        kept = min(sampling.top_k, logits.shape[-1])
        logits = jnp.where(logits < jax.lax.top_k(logits, kept)[0][:, -1:], -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
        least = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.min_p > 0:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
