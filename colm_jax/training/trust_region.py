"""Minimisation by Newton steps in a trust region, of functions of up to a few thousand weights.

The Hessian at a point is decomposed once. Every radius that is tried there then costs no more than a few products of
vectors, and curvature that is negative or zero needs no case of its own.

Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 4.1 and section 4.3.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh
from scipy.optimize import brentq

_FIRST_RADIUS, _LAST_RADIUS = 1.0, 1000.0
_ROUNDING = 1e-8  # of a value, relative: what float32 terms leave of it. A step that gains less cannot be judged.


@runtime_checkable
class Smooth(Protocol):
    """A function of D weights with its derivatives."""

    def value(self, x: Float[np.ndarray, "D"]) -> float:
        """Return the value at x."""

    def gradient(self, x: Float[np.ndarray, "D"]) -> Float[np.ndarray, "D"]:
        """Return the gradient at x."""

    def hessian(self, x: Float[np.ndarray, "D"]) -> Float[np.ndarray, "D D"]:
        """Return the Hessian at x."""


def minimise_in_trust_region(
    function: Smooth,
    start: Float[np.ndarray, "D"],
    max_steps: int,
    small_gradient: float,
    arrived: Callable[[float], None] = lambda value: None,
) -> tuple[Float[np.ndarray, "D"], int]:
    """Return a local minimum, and how many steps were tried on the way: `max_steps` if they did not suffice.

    Args:
      function: what to minimise, not necessarily convex.
      start: where to begin.
      max_steps: to try at most, those counted that were not taken.
      small_gradient: norm of the gradient below which a point is a minimum.
      arrived: progress callback(value after the step), also after one that was not taken.
    """
    x, radius = start, _FIRST_RADIUS
    value, gradient = function.value(x), function.gradient(x)
    moved = True
    for steps in range(max_steps):
        if np.linalg.norm(gradient) < small_gradient:
            return x, steps
        if moved:
            curvatures, axes = eigh(function.hessian(x), driver="evr")
        slopes = axes.T @ gradient
        step, at_edge = trust_region_step(curvatures, slopes, radius)
        expected = -(slopes @ step + 0.5 * curvatures @ step**2)
        if expected <= _ROUNDING * max(abs(value), 1.0):
            return x, steps
        tried = x + axes @ step
        ratio = (value - function.value(tried)) / expected
        if not ratio >= 0.25:  # also where the value is no number
            radius *= 0.25
        elif ratio > 0.75 and at_edge:
            radius = min(2 * radius, _LAST_RADIUS)
        moved = bool(ratio > 0.15)
        if moved:
            x, value, gradient = tried, function.value(tried), function.gradient(tried)
        arrived(value)
    return x, max_steps


def trust_region_step(
    curvatures: Float[np.ndarray, "D"], slopes: Float[np.ndarray, "D"], radius: float
) -> tuple[Float[np.ndarray, "D"], bool]:
    """Return the step s, no longer than the radius, that minimises Σ (slopes · s + ½ curvatures · s²), and whether the
    radius bounds it.

    It is -slopes / (curvatures + λ) for the one λ ≥ 0 that leaves no negative curvature and fits the radius.

    Args:
      curvatures: of the axes, ascending.
      slopes: along the same axes.
      radius: of the trust region.
    """
    lowest, steepest = curvatures[0], float(np.linalg.norm(slopes))
    if lowest > 0 and np.linalg.norm(slopes / curvatures) <= radius:
        return -slopes / curvatures, False
    # λ is looked for as its distance from -lowest, which stays exact however small it is. An axis of negative curvature
    # without slope would never be walked along (the "hard case"): a slope too small to count is put there.
    least = 1e-12 * max(steepest, abs(lowest) * radius)
    tilted = slopes.copy()
    if abs(tilted[0]) < least:
        tilted[0] = np.copysign(least, tilted[0])
    gaps = curvatures - lowest

    def shortfall(distance: float) -> float:  # nearly linear in the distance
        return 1 / radius - 1 / float(np.linalg.norm(tilted / (gaps + distance)))

    furthest = max(lowest, 0.0) + float(np.linalg.norm(tilted)) / radius
    nearest = max(lowest, abs(tilted[0]) / radius)
    distance = brentq(shortfall, nearest, furthest, xtol=1e-300, rtol=1e-12) if nearest < furthest else furthest
    return -tilted / (gaps + distance), True
