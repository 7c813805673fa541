"""What identifies an object among the settings: the same in every process, another where it computes something else."""

import functools
import json
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from colm_jax.settings.references import call_with, describe


def scaled(factor):
    def decorate(function):
        @functools.wraps(function)
        def call(step):
            return factor * function(step)

        return call

    return decorate


def ramp(step, *, slope=1.0):
    return slope * step


class Schedule:
    def __init__(self, rate):
        self.rate = rate

    def at(self, step):
        return self.rate


@pytest.mark.parametrize(
    ("same", "other"),
    [
        (lambda: scaled(0.5)(ramp), lambda: scaled(2.0)(ramp)),
        (lambda: Schedule(1.0).at, lambda: Schedule(2.0).at),
        (lambda: functools.partial(ramp, slope=2.0), lambda: functools.partial(ramp, slope=3.0)),
        (lambda: optax.constant_schedule(0.5), lambda: optax.constant_schedule(0.25)),
        (lambda: optax.adam(1e-3), lambda: optax.adam(1e-4)),
        (lambda: {"a": {1, 2}}, lambda: {"a": {1, 3}}),
        (lambda: jnp.arange(3), lambda: np.arange(4)),
    ],
    ids=["wrapped", "method", "partial", "schedule", "optimizer", "set", "array"],
)
def test_descriptions_differ_where_objects_do(same, other):
    assert json.dumps(describe(same())) == json.dumps(describe(same())) != json.dumps(describe(other()))


def test_objects_that_hold_themselves_are_described():
    held = Schedule(1.0)
    held.rate = held
    assert "itself" in json.dumps(describe(held))


def test_functions_of_modules_are_described_by_name():
    assert describe(math.sqrt)["holds"][-1] == {"module": "math"}


def test_a_factory_gets_the_keywords_that_it_takes():
    assert call_with(lambda steps: steps, learning_rate=1.0, steps=3) == 3
    assert call_with(lambda **known: known, steps=3) == {"steps": 3}
