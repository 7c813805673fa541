"""Validation of numeric arguments: whole, finite and within a range. Errors are one line that names the argument.

Scalars of NumPy and JAX are converted to Python numbers, so that settings can be hashed and written as JSON. Booleans
are rejected.
"""

import math
from typing import Any

from colm_jax.errors import UserError

INT32 = 2**31 - 1  # the largest int32, the integer type of compiled programs
SEEDS = 2**64  # the number of different seeds


def check_whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """Return the value as an int.

    Args:
      name: the name of the setting, for the error.
      value: the value to check.
      least: the smallest allowed value.
      most: the largest allowed value; None: no limit.

    Raises:
      UserError: the value is not a whole number, or is out of range.
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
    """Return the value as a finite float; a range is closed at `least` and `most`, open at `above` and `below`.

    Raises:
      UserError: the value is not a number, is NaN or infinite, or is out of range.
    """
    found = _plain(value)
    if type(found) in (int, float):
        try:
            number = float(found)
        except OverflowError:  # an int too large for a float
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
    """Return the value as a seed, a whole number from 0 to 2^64 − 1; errors as `check_whole`."""
    return check_whole(name, value, 0, SEEDS - 1)


def _plain(value: Any) -> Any:
    """Convert a scalar of NumPy or JAX to a Python number; return other values unchanged."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _shown(value: Any) -> str:
    return f"{_plain(value)!r:.60}"


def _range(least: float | None, most: float | None, above: float | None = None, below: float | None = None) -> str:
    """Describe a range: "from 0 to 1", "above 0 and at most 1", "of at least 1"."""
    if least is not None and most is not None:
        return f"from {least} to {most}"
    low = f"of at least {least}" if least is not None else f"above {above}" if above is not None else ""
    high = f"at most {most}" if most is not None else f"below {below}" if below is not None else ""
    return " and ".join(filter(None, (low, high))) or "that is finite"
