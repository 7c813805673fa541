"""Validation of numbers that callers give: whole, finite and within a range, else one line that names them.

Scalars of NumPy and JAX are accepted and become Python's numbers, so that settings can be hashed and written as JSON.
True and False are no numbers here.
"""

import math
from typing import Any

from colm_jax.errors import UserError

INT32 = 2**31 - 1  # the largest number of an int32, which programs count in
SEEDS = 2**64  # how many seeds there are


def check_whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """The value as an int.

    Args:
      name: of the setting, in the error.
      value: what was given.
      least: the smallest that is allowed.
      most: the largest; None: any.

    Raises:
      UserError: no whole number, or one out of range.
    """
    found = _plain(value)
    if type(found) is not int or found < least or (most is not None and found > most):
        raise UserError(f"{name} must be a whole number {_range(least, most)}, got {_shown(value)}")
    return found


def check_number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """The value as a finite float; a range is closed at `least` and `most`, open at `above` and `below`.

    Raises:
      UserError: no number, NaN, infinite, or out of range.
    """
    found = _plain(value)
    if type(found) in (int, float):
        try:
            number = float(found)
        except OverflowError:  # a whole number beyond any float
            number = math.inf
        if (
            math.isfinite(number)
            and (least is None or number >= least)
            and (most is None or number <= most)
            and (above is None or number > above)
            and (below is None or number < below)
        ):
            return number
    raise UserError(f"{name} must be a number {_range(least, most, above, below)}, got {_shown(value)}")


def check_seed(name: str, value: Any) -> int:
    """The value as a seed: a whole number from 0 to 2^64 − 1. Raises UserError as `check_whole`."""
    return check_whole(name, value, 0, SEEDS - 1)


def _plain(value: Any) -> Any:
    """A scalar of NumPy or JAX as Python's; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _shown(value: Any) -> str:
    return f"{_plain(value)!r:.60}"


def _range(least: float | None, most: float | None, above: float | None = None, below: float | None = None) -> str:
    """A range in words: "from 0 to 1", "above 0 and at most 1", "of at least 1"."""
    if least is not None and most is not None:
        return f"from {least} to {most}"
    low = f"of at least {least}" if least is not None else f"above {above}" if above is not None else ""
    high = f"at most {most}" if most is not None else f"below {below}" if below is not None else ""
    return " and ".join(filter(None, (low, high))) or "that is finite"
