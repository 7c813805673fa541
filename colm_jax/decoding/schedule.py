"""The threshold at each written token: constant, or warming up from 1 to its final value."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from colm_jax.errors import UserError

SCHEDULES = ("constant", "linear", "cosine", "exponential")


def threshold_at(token: Int[Array, "B"], threshold: Float[Array, "B"], schedule: str, warmup: int) -> Float[Array, "B"]:
    """η_t of the token-th written token (from 0); the final value from token `warmup` on."""
    if schedule == "constant" or warmup == 0:
        return threshold
    done = token / warmup
    eta = {
        "linear": lambda: 1 + (threshold - 1) * done,
        "cosine": lambda: threshold + (1 - threshold) / 2 * (jnp.cos(math.pi * done) + 1),
        "exponential": lambda: threshold**done,
    }[schedule]()
    return jnp.where(token < warmup, eta, threshold)


def check_threshold(threshold: float) -> float:
    """The threshold, if it is one.

    Raises:
      UserError: no number from 0 to 1.
    """
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise UserError(f"threshold must be a number from 0 to 1, got {threshold!r}")
    return float(threshold)
