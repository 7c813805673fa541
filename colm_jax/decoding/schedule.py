"""The threshold at each written token: constant, or falling from 1 to its final value during a warm-up."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from colm_jax.models.arrays import AnyArray

# By name: each slot's threshold during the warm-up, from its final value and the share of the warm-up that is done.
SCHEDULES: dict[str, Callable[[AnyArray, Array], AnyArray]] = {
    "constant": lambda threshold, done: threshold,
    "linear": lambda threshold, done: 1 + (threshold - 1) * done,
    "cosine": lambda threshold, done: threshold + (1 - threshold) / 2 * (jnp.cos(math.pi * done) + 1),
    "exponential": lambda threshold, done: threshold**done,
}


def threshold_at(
    token: Int[Array, "B"], threshold: Float[AnyArray, "B"], schedule: Int[AnyArray, "B"], warmup: Int[AnyArray, "B"]
) -> Float[Array, "B"]:
    """Return η_t at the token-th written token (from 0) of each slot; the final value from token `warmup` on.

    Args:
      token: number of the token.
      threshold: final value.
      schedule: index of the schedule's name in `SCHEDULE_NAMES`.
      warmup: length of the warm-up, in tokens.
    """
    done = token / jnp.maximum(warmup, 1)
    values = [of(threshold, done) for of in SCHEDULES.values()]
    return jnp.where(token < warmup, jnp.choose(schedule, values, mode="clip"), threshold)
