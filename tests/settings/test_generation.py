"""Settings of generation: declared once, without JAX."""

import subprocess
import sys
from dataclasses import fields

import pytest

from colm_jax.decoding.schedule import SCHEDULES
from colm_jax.decoding.strategies import CHOOSE
from colm_jax.errors import UserError
from colm_jax.settings.fields import declared
from colm_jax.settings.generation import (
    SCHEDULE_NAMES,
    Correction,
    ExpertBatching,
    GenerationSettings,
)
from colm_jax.settings.strategies import STRATEGIES


def test_settings_import_no_jax():
    code = (
        "import importlib, pkgutil, sys, colm_jax.settings as package\n"
        "for module in pkgutil.iter_modules(package.__path__, 'colm_jax.settings.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib', 'flax')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_the_keys_of_the_tables():
    assert CHOOSE.keys() == STRATEGIES.keys()
    assert tuple(SCHEDULES) == SCHEDULE_NAMES  # in order: the loop chooses by index


@pytest.mark.parametrize("kind", [GenerationSettings, Correction, ExpertBatching])
def test_every_setting_has_a_help_text(kind):
    for entry in fields(kind):
        assert declared(entry).help and not declared(entry).help.endswith(".")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "beam"}, "strategy must be one of defer, compose, .*, got 'beam'"),
        ({"schedule": ["linear", "step"]}, "schedule must be one of constant, linear, cosine, exponential, got 'step'"),
        ({"top_p": 0}, "top_p must be a number above 0 and at most 1, got 0"),
        ({"log_probs": 1}, "log_probs must be True or False, got 1"),
        ({"correction": 3}, "correction must be Correction, got 3"),
        ({"stop": ["a", ""]}, "stop must not hold an empty string"),
    ],
)
def test_a_wrong_value_is_named(given, message):
    with pytest.raises(UserError, match=f"^{message}"):
        GenerationSettings(**given)


def test_settings_of_each_prompt():
    shared = GenerationSettings(max_new_tokens=4)
    assert shared.of_prompts(2) == [shared, shared]
    first, second = GenerationSettings(threshold=[0.25, 0.5], warmup=[1, 2]).of_prompts(2)
    assert (first.threshold, first.warmup, second.threshold, second.warmup) == (0.25, 1, 0.5, 2)
    with pytest.raises(UserError, match="warmup: 2 values for 3 prompts"):
        GenerationSettings(warmup=[1, 2]).of_prompts(3)
