"""The check of numbers in a model's configuration that must exceed 0."""

from typing import Any

from colm_jax.errors import UserError

_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of float32, in which the network computes


def check_positive(name: str, value: Any) -> None:
    """Check a number.

    Raises:
      UserError: naming it and the value, which is not a finite number above 0, or one that float32 cannot hold.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise UserError(f"model config: {name} must be a positive number, got {value!r}")
    if not _SMALLEST <= value <= _LARGEST:
        raise UserError(f"model config: {name} must be from {_SMALLEST:.3g} to {_LARGEST:.3g} (float32), got {value!r}")
