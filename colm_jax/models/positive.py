"""The check of numbers in a model's configuration that must exceed 0."""

from typing import Any

from colm_jax.errors import UserError


def check_positive(name: str, value: Any) -> None:
    """Check a number.

    Raises:
      UserError: naming it and the value, which is not a finite number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"model config: {name} must be a positive number, got {value!r}")
