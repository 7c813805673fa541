"""Sampling: each slot greedy, or by a temperature, top-k, top-p, min-p and random key of its own."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from colm_jax.checks import INT32
from colm_jax.models.arrays import AnyArray, pytree
from colm_jax.settings.generation import GenerationSettings

# Within the bounds neither a temperature nor its reciprocal is flushed to 0 in float32; beyond them the distribution is
# the same.
_COLDEST, _HOTTEST = 1e-37, 1e30


@pytree
@dataclass(frozen=True)
class SamplingParams:
    """How each slot samples: arrays, so that one compiled program serves all values."""

    temperature: Float[AnyArray, "*B"]  # 0: greedy, and the rest has no effect
    top_k: Int[AnyArray, "*B"]  # 0: all
    top_p: Float[AnyArray, "*B"]
    log_min_p: Float[AnyArray, "*B"]  # -inf: all

    @classmethod
    def of(cls, settings: GenerationSettings) -> "SamplingParams":
        """Return the parameters of one request: arrays without axes, in host memory."""
        temperature = settings.temperature and min(max(settings.temperature, _COLDEST), _HOTTEST)
        return cls(
            temperature=np.array(temperature, np.float32),
            top_k=np.array(min(settings.top_k, INT32), np.int32),
            top_p=np.array(settings.top_p, np.float32),
            log_min_p=np.array(math.log(settings.min_p) if settings.min_p else -math.inf, np.float32),
        )


def sample(
    logits: Float[Array, "B V"], keys: Array, params: SamplingParams, active: Bool[Array, "B"]
) -> Int[Array, "B"]:
    """Return a token for each slot.

    Only what the active slots need is computed: nothing is drawn where all are greedy, nothing is sorted where none
    asks for top-k or top-p.

    Args:
      logits: -inf where a token is not allowed.
      keys: [B] a PRNG key for each slot, so that a draw does not depend on the rest of the batch.
      params: of each slot.
      active: slots whose token is used.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    samples = active & (params.temperature > 0)

    def draw() -> Int[Array, "B"]:
        # Differences to the most probable token, so that no temperature makes inf - inf.
        temperature = jnp.where(samples, params.temperature, 1.0)[:, None]
        scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
        truncates = samples & ((params.top_k > 0) | (params.top_p < 1))
        scaled = jax.lax.cond(jnp.any(truncates), lambda: _truncate(scaled, params), lambda: scaled)
        scaled = jnp.where(scaled < params.log_min_p[:, None], -jnp.inf, scaled)  # the largest is 0
        return jnp.where(samples, jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32), greedy)

    return jax.lax.cond(jnp.any(samples), draw, lambda: greedy)


def _truncate(logits: Float[Array, "B V"], params: SamplingParams) -> Float[Array, "B V"]:
    """Exclude what top-k, then top-p excludes: -inf."""
    ordered, size = jnp.sort(logits, axis=-1, descending=True), logits.shape[-1]
    last = jnp.where(params.top_k > 0, jnp.minimum(params.top_k, size), size) - 1
    least_of_k = jnp.take_along_axis(ordered, last[:, None], axis=-1)
    ordered = jnp.where(ordered < least_of_k, -jnp.inf, ordered)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The most probable token is kept, however small top_p is in float32.
    kept = ((before < params.top_p[:, None]) | (params.top_p[:, None] >= 1)).at[:, 0].set(True)
    least_of_p = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < jnp.maximum(least_of_k, least_of_p), -jnp.inf, logits)
