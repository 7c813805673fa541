"""The threshold at each written token: constant, or warming up from 1 to its final value."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from colm_jax.checks import check_number
from colm_jax.errors import UserError

SCHEDULES = ("constant", "linear", "cosine", "exponential")


def threshold_at(
    token: Int[Array, "B"], threshold: Float[Array, "B"], schedule: Int[Array, "B"], warmup: Int[Array, "B"]
) -> Float[Array, "B"]:
    """η_t of the token-th written token (from 0) of each text; the final value from token `warmup` on.

    Args:
      token: number of the token.
      threshold: final value.
      schedule: place of the text's schedule in SCHEDULES.
      warmup: length of the schedule, in tokens.
    """
    done = token / jnp.maximum(warmup, 1)
    values = [
        threshold,
        1 + (threshold - 1) * done,
        threshold + (1 - threshold) / 2 * (jnp.cos(math.pi * done) + 1),
        threshold**done,
    ]
    return jnp.where(token < warmup, jnp.choose(schedule, values, mode="clip"), threshold)


def check_threshold(threshold: float) -> float:
    """The threshold, if it is one.

    Raises:
      UserError: no number from 0 to 1.
    """
    return check_number("threshold", threshold, 0, 1)


def check_schedule(schedule: str) -> str:
    """The schedule, if it is one.

    Raises:
      UserError: no such schedule.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    return schedule
