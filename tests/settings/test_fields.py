"""Declaring settings, and checking a settings object against its declarations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.errors import UserError
from colm_jax.settings.fields import seed_setting, setting, validate


@dataclass(frozen=True)
class _Example:
    count: int = setting(3, help="a count", least=1, most=9)
    share: float = setting(0.5, help="a share", least=0, below=1)
    kind: str = setting("a", help="a kind", choices=("a", "b"))
    limit: float | None = setting(None, help="a limit", above=0)
    each: float | Sequence[float] = setting(0.0, help="one or one of each", least=0, most=1)
    names: tuple[str, ...] = setting((), help="names")
    sizes: tuple[int, int, int] = setting((1, 1, 1), help="sizes", least=1)
    on: bool = setting(False, help="a switch")
    seed: int = seed_setting("of it")

    def __post_init__(self):
        validate(self, "Example.")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"count": np.int64(4)}, 4),
        ({"count": jnp.int32(4)}, 4),
        ({"share": 0}, 0.0),
        ({"limit": None}, None),
        ({"limit": 2}, 2.0),
        ({"each": [0, np.float32(1)]}, (0.0, 1.0)),
        ({"each": np.array([0.5, 0.25])}, (0.5, 0.25)),
        ({"each": np.float32(0.5)}, 0.5),
        ({"names": ["x", "y"]}, ("x", "y")),
        ({"sizes": [1, 2, 4]}, (1, 2, 4)),
        ({"on": np.True_}, True),
        ({"seed": 2**64 - 1}, 2**64 - 1),
    ],
)
def test_values_become_plain(given, expected):
    ((name, _),) = given.items()
    found = getattr(_Example(**given), name)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "Example.count must be a whole number from 1 to 9, got 0"),
        ({"count": 2.0}, "Example.count must be a whole number from 1 to 9, got 2.0"),
        ({"count": True}, "Example.count must be a whole number"),
        ({"share": 1}, "Example.share must be a number of at least 0 and below 1, got 1"),
        ({"share": float("nan")}, "Example.share must be a number"),
        ({"share": "0.5"}, "Example.share must be a number"),
        ({"kind": "c"}, "Example.kind must be one of a, b, got 'c'"),
        ({"kind": 1}, "Example.kind must be one of a, b, got 1"),
        ({"limit": 0}, "Example.limit must be a number above 0"),
        ({"each": [0.5, 2]}, "Example.each must be a number from 0 to 1, got 2"),
        ({"names": "x"}, "Example.names must be a list, each a string, got 'x'"),
        ({"names": [1]}, "Example.names must be a string, got 1"),
        ({"sizes": (1, 2)}, "Example.sizes must be a tuple of 3"),
        ({"sizes": (1, 2, 0)}, "Example.sizes must be a whole number of at least 1, got 0"),
        ({"on": 1}, "Example.on must be True or False, got 1"),
        ({"seed": -1}, "Example.seed must be a whole number"),
        ({"seed": 2**64}, "Example.seed must be a whole number"),
    ],
)
def test_wrong_values_are_named(given: dict[str, Any], message):
    with pytest.raises(UserError) as error:
        _Example(**given)
    assert str(error.value).startswith(message)
