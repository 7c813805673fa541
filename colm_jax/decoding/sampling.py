"""Taking a token from weights over the vocabulary: argmax, or temperature, top-k, top-p, min-p and a request's key."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from colm_jax.checks import check_number, check_whole

_COLDEST, _HOTTEST = 1e-37, 1e30


@dataclass(frozen=True)
class Sampling:
    """How tokens are taken; temperature 0 is argmax, and the rest then has no effect."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # tokens at least so probable as this share of the most probable one's probability

    def __post_init__(self):
        """Validates the settings; NumPy scalars become Python's numbers."""
        object.__setattr__(self, "temperature", check_number("temperature", self.temperature, least=0))
        object.__setattr__(self, "top_p", check_number("top_p", self.top_p, above=0, most=1))
        object.__setattr__(self, "top_k", check_whole("top_k", self.top_k))
        object.__setattr__(self, "min_p", check_number("min_p", self.min_p, 0, 1))


def take(logits: Float[Array, "B V"], keys: Array, sampling: Sampling) -> Int[Array, "B"]:
    """One id per sequence. `keys` [B]: a PRNG key for each, so that a draw never depends on batch mates."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Differences to the most probable token, so that no temperature makes inf − inf. Within the bounds neither the
    # temperature nor its reciprocal is flushed to 0 in float32; beyond them the distribution is the same.
    temperature = min(max(sampling.temperature, _COLDEST), _HOTTEST)
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
    if sampling.top_k:
        count = min(sampling.top_k, logits.shape[-1])
        logits = jnp.where(logits < jax.lax.top_k(logits, count)[0][:, -1:], -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
        kept = (before < sampling.top_p).at[:, 0].set(True)  # the most probable, however small top_p is in float32
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.min_p > 0:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
