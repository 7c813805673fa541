"""Numbers are validated in one place: whole, finite, in range; scalars of NumPy and JAX count as numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.checks import check_number, check_seed, check_whole
from colm_jax.errors import UserError
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.generation import Correction, ExpertBatching, GenerationSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.sweep import Sweep
from colm_jax.settings.training import GateInit, Lora, Training

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), np.array(7), jnp.int32(7)])
def test_whole_numbers_become_int(value):
    found = check_whole("n", value)
    assert (found, type(found)) == (7, int)


@pytest.mark.parametrize("value", [True, np.True_, 7.0, "7", None, -1, 11, np.array([7]), NAN])
def test_what_is_not_a_whole_number_in_range_is_refused(value):
    with pytest.raises(UserError, match=r"^n must be a whole number from 0 to 10, got "):
        check_whole("n", value, 0, 10)


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.float64(0.25), jnp.bfloat16(0.25)])
def test_numbers_become_float(value):
    found = check_number("x", value, 0, 1)
    assert (found, type(found)) == (0.25, float)


@pytest.mark.parametrize("value", [NAN, INF, -INF, np.float32("nan"), False, "0.5", None, 10**400, 1j])
def test_what_is_not_a_finite_number_is_refused(value):
    with pytest.raises(UserError, match=r"^x must be a number that is finite, got "):
        check_number("x", value)


@pytest.mark.parametrize(
    "bounds, words, inside, outside",
    [
        ({"least": 0}, "of at least 0", [0, 1e300], [-1e-300]),
        ({"above": 0, "most": 1}, "above 0 and at most 1", [1e-300, 1], [0, 1.5]),
        ({"least": 0, "below": 1}, "of at least 0 and below 1", [0, 0.5], [1]),
        ({"most": 0}, "at most 0", [0, -5], [0.1]),
    ],
)
def test_bounds_are_kept_and_named(bounds, words, inside, outside):
    for value in inside:
        assert check_number("x", value, **bounds) == value
    for value in outside:
        with pytest.raises(UserError, match=f"^x must be a number {words}, got "):
            check_number("x", value, **bounds)


def test_a_seed_has_64_bits():
    assert check_seed("seed", 2**64 - 1) == 2**64 - 1
    for value in (-1, 2**64, 1.0, True):
        with pytest.raises(UserError, match=r"^seed must be a whole number from 0 to 18446744073709551615, got "):
            check_seed("seed", value)


RUN = {"base": "b", "experts": ("e",), "data": "d"}
GRID = {"grid": {"Training.seed": (1, 2)}}


@pytest.mark.parametrize(
    "kind, settings, name",
    [
        (GenerationSettings, {"threshold": NAN}, "threshold"),
        (GenerationSettings, {"threshold": [0.5, INF]}, "threshold"),
        (GenerationSettings, {"threshold": 0.5, "temperature": INF}, "temperature"),
        (GenerationSettings, {"threshold": 0.5, "top_p": NAN}, "top_p"),
        (GenerationSettings, {"threshold": 0.5, "min_p": NAN}, "min_p"),
        (GenerationSettings, {"threshold": 0.5, "rate": NAN}, "rate"),
        (GenerationSettings, {"threshold": 0.5, "top_k": True}, "top_k"),
        (GenerationSettings, {"threshold": 0.5, "seed": 2**64}, "seed"),
        (GenerationSettings, {"threshold": 0.5, "max_new_tokens": [4, 0]}, "max_new_tokens"),
        (GenerationSettings, {"threshold": 0.5, "warmup": -1}, "warmup"),
        (GenerationSettings, {"threshold": 0.5, "samples": True}, "samples"),
        (GenerationSettings, {"threshold": 0.5, "batch_size": 0}, "batch_size"),
        (Training, {"learning_rate": INF}, "learning_rate"),
        (Training, {"gate_learning_rate": NAN}, "gate_learning_rate"),
        (Training, {"weight_decay": -0.1}, "weight_decay"),
        (Training, {"clip_norm": 0.0}, "clip_norm"),
        (Training, {"warmup_fraction": NAN}, "warmup_fraction"),
        (Training, {"positive_weight": INF}, "positive_weight"),
        (Training, {"epochs": 2**40}, "epochs"),
        (Training, {"seed": -1}, "seed"),
        (GateInit, {"positive_weight": INF}, "positive_weight"),
        (GateInit, {"ridge": NAN}, "ridge"),
        (GateInit, {"max_steps": 0}, "max_steps"),
        (GateInit, {"seed": -1}, "seed"),
        (Calibration, {"rates": (0.5, NAN)}, "rates"),
        (Calibration, {"max_new_tokens": True}, "max_new_tokens"),
        (Correction, {"bound": NAN}, "bound"),
        (Correction, {"watch": 2**40}, "watch"),
        (ExpertBatching, {"calls": 1, "steps": 2**40}, "steps"),
        (Lora, {"alpha": INF}, "alpha"),
        (Lora, {"rank": 0}, "rank"),
        (Sweep, {**GRID, "seed": -1}, "seed"),
        (Sweep, {**GRID, "memory_gib": NAN}, "memory_gib"),
        (RunConfig, {**RUN, "random_rate": NAN}, "random_rate"),
        (RunConfig, {**RUN, "max_new_tokens": 0}, "max_new_tokens"),
        (RunConfig, {**RUN, "batch_size": 0}, "batch_size"),
    ],
)
def test_every_setting_is_validated_when_it_is_made(kind, settings, name):
    with pytest.raises(UserError, match=rf"\b{name} must be a (whole )?number "):
        kind(**settings)


def test_numpy_settings_become_plain_numbers():
    numbers = {"max_new_tokens": np.int64(4), "temperature": np.float32(0.5), "warmup": np.int32(2)}
    given = GenerationSettings(threshold=np.array([0.25, 0.5]), seed=np.uint64(2**63), **numbers)
    assert given == GenerationSettings(threshold=[0.25, 0.5], max_new_tokens=4, temperature=0.5, seed=2**63, warmup=2)
    assert [type(value) for value in (*given.threshold, given.temperature, given.seed)] == [float] * 3 + [int]
