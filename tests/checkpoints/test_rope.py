"""Rotary positions in config.json: both spellings, and errors if they disagree."""

import pytest

from colm_jax.checkpoints.families import from_huggingface
from colm_jax.checkpoints.families.reference import reference_class
from colm_jax.errors import UserError
from colm_jax.models.config import Bands, Rope
from tests.models.families import CONFIGS

LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 200.0}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 90}
LLAMA3 = {"rope_type": "llama3", "factor": 5.0, "rope_theta": 300.0, **BANDS}
_ORIGINAL = "original_max_position_embeddings"


def without(fields, *keys):
    return {key: value for key, value in fields.items() if key not in keys}


def read(name, **fields):
    """Read a family's config.json with its RoPE fields replaced."""
    return from_huggingface({**without(CONFIGS[name], "rope_parameters"), **fields}, "config.json")


def reread(name, **fields):
    """Read the same file after transformers' configuration class has loaded and saved it."""
    made = reference_class(CONFIGS[name]["model_type"])(**{**without(CONFIGS[name], "rope_parameters"), **fields})
    return from_huggingface(made.to_dict(), "config.json")


# Valid: (family, fields, rope).
ACCEPTED = {
    "one description": ("mistral", {"rope_parameters": LINEAR}, Rope(200.0, 3.0)),
    "old spelling": ("qwen2", {"rope_theta": 200, "rope_scaling": {"type": "linear", "factor": 3}}, Rope(200.0, 3.0)),
    "old spelling, theta within": ("llama", {"rope_scaling": LINEAR}, Rope(200.0, 3.0)),
    "both types, equal": ("qwen3", {"rope_parameters": {**LINEAR, "type": "linear"}}, Rope(200.0, 3.0)),
    "both spellings, equal": (
        "llama",
        {"rope_parameters": LINEAR, "rope_theta": 200.0, "rope_scaling": {"type": "linear", "factor": 3}},
        Rope(200.0, 3.0),
    ),
    "theta twice, equal": ("gemma2", {"rope_parameters": LINEAR, "rope_theta": 200}, Rope(200.0, 3.0)),
    "nothing to scale": ("mixtral", {"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {}}, Rope(7.0)),
    "null": ("mistral", {"rope_parameters": None, "rope_theta": 8.0, "rope_scaling": None}, Rope(8.0)),
    "no theta": ("mixtral", {"rope_parameters": {"rope_type": "default"}}, Rope(1e6)),
    "nothing at all": ("qwen2", {}, Rope(1e4)),
    "a field that nobody knows": ("llama", {"rope_parameters": {**LINEAR, "finetuned": True}}, Rope(200.0, 3.0)),
    "all of the head": ("llama", {"rope_parameters": {**LINEAR, "partial_rotary_factor": 1.0}}, Rope(200.0, 3.0)),
    "bands": ("llama-3", {"rope_parameters": LLAMA3, _ORIGINAL: 90}, Rope(300.0, 5.0, Bands(1.0, 4.0, 90))),
    "bands, theirs beside": (
        "llama-3",
        {"rope_parameters": without(LLAMA3, _ORIGINAL), _ORIGINAL: 80},
        Rope(300.0, 5.0, Bands(1.0, 4.0, 80)),
    ),
    "an original context that linear scaling has no use for": (
        "llama",
        {"rope_parameters": LINEAR, _ORIGINAL: 80},
        Rope(200.0, 3.0),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_ropes_that_agree_are_read(case):
    name, fields, expected = ACCEPTED[case]
    assert read(name, **fields).rope == expected


@pytest.mark.parametrize("case", [case for case in ACCEPTED if case != "bands, theirs beside"])
def test_rope_equals_that_of_transformers(case):
    name, fields, _ = ACCEPTED[case]
    assert reread(name, **fields) == read(name, **fields)


REFUSED = {
    "scaling beside parameters": (
        {"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 7.0},
        r"'rope_parameters' .* and 'rope_scaling' .* disagree",
    ),
    "default scaling beside linear parameters": (
        {"rope_parameters": LINEAR, "rope_scaling": {"rope_type": "default", "rope_theta": 200.0}},
        "disagree",
    ),
    "another factor": ({"rope_parameters": LINEAR, "rope_scaling": {**LINEAR, "factor": 4.0}}, "disagree"),
    "the theta that transformers would drop": (
        {"rope_parameters": LINEAR, "rope_scaling": {"type": "linear", "factor": 3.0}},
        "disagree",
    ),
    "two thetas": (
        {"rope_parameters": LINEAR, "rope_theta": 9.0},
        r"'rope_theta' \(9\) and 'rope_parameters.rope_theta' \(200.0\) disagree",
    ),
    "two thetas, old": ({"rope_scaling": LINEAR, "rope_theta": 9.0}, r"'rope_scaling.rope_theta' \(200.0\) disagree"),
    "two types": (
        {"rope_parameters": {**LINEAR, "type": "llama3"}},
        r"'rope_type' \('linear'\) and 'type' \('llama3'\) disagree",
    ),
    "two original contexts": ({"rope_parameters": LLAMA3, _ORIGINAL: 91}, rf"'{_ORIGINAL}' \(91\) and .* disagree"),
    "no original context": ({"rope_parameters": without(LLAMA3, _ORIGINAL)}, f"'{_ORIGINAL}' is missing"),
    "half a position": ({"rope_parameters": {**LLAMA3, _ORIGINAL: 90.5}}, "must be a whole number, got 90.5"),
    "a factor without a type": (
        {"rope_parameters": without(LINEAR, "rope_type")},
        r"'factor' \(3.0\) is not supported",
    ),
    "part of the head": ({"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}}, "'partial_rotary_factor'"),
    "part of the head, beside": (
        {"rope_parameters": LINEAR, "partial_rotary_factor": 0.5},
        "'partial_rotary_factor'",
    ),
    "by layer": ({"rope_parameters": {"full_attention": LINEAR, "sliding_attention": LINEAR}}, "'full_attention'"),
    "beyond any number": ({"rope_parameters": {**LINEAR, "factor": 10**400}}, "'factor' is out of range"),
    "no type": ({"rope_parameters": {**LINEAR, "rope_type": None}}, "rope type None"),
    "no number": ({"rope_parameters": {**LINEAR, "rope_theta": None}}, "'rope_theta' is missing or no number: None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ropes_that_disagree_are_an_error(case):
    fields, reason = REFUSED[case]
    with pytest.raises(UserError, match=rf"^config\.json: .*{reason}"):
        read("llama", **fields)


# Gemma 3: separate RoPEs for layers without and with a sliding window.

FULL, LOCAL = {"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0}, {"rope_type": "default", "rope_theta": 60.0}
BOTH = {"full_attention": FULL, "sliding_attention": LOCAL}
BY_LAYER = {
    "both": ({"rope_parameters": BOTH}, Rope(700.0, 3.0), Rope(60.0)),
    "old spelling": (
        {"rope_theta": 700, "rope_local_base_freq": 60, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
        Rope(700.0, 3.0),
        Rope(60.0),
    ),
    "both spellings, equal": (
        {"rope_parameters": BOTH, "rope_theta": 700, "rope_local_base_freq": 60, "rope_scaling": FULL},
        Rope(700.0, 3.0),
        Rope(60.0),
    ),
    "thetas beside": (
        {
            "rope_parameters": {kind: {"rope_type": "default"} for kind in BOTH},
            "rope_theta": 5.0,
            "rope_local_base_freq": 6.0,
        },
        Rope(5.0),
        Rope(6.0),
    ),
    "one of them": ({"rope_parameters": {"full_attention": FULL}}, Rope(700.0, 3.0), Rope(1e4)),
    "the other": ({"rope_parameters": {"full_attention": None, "sliding_attention": LOCAL}}, Rope(1e6), Rope(60.0)),
    "none": ({}, Rope(1e6), Rope(1e4)),
}


@pytest.mark.parametrize("case", BY_LAYER)
def test_ropes_by_layer_type_are_read(case):
    fields, full, windowed = BY_LAYER[case]
    config = read("gemma3", **fields)
    assert (config.rope, config.window_rope) == (full, windowed)
    assert reread("gemma3", **fields) == config


REFUSED_BY_LAYER = {
    "one for all layers": ({"rope_parameters": FULL}, "transformers ignores the rest"),
    "a third": ({"rope_parameters": {**BOTH, "chunked_attention": FULL}}, "'chunked_attention'"),
    "scaling beside": ({"rope_parameters": BOTH, "rope_scaling": {**FULL, "factor": 8.0}}, "disagree"),
    "scaling of old": ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "name it 'rope_type'"),
    "two local thetas": ({"rope_parameters": BOTH, "rope_local_base_freq": 61}, r"'rope_local_base_freq' \(61\)"),
    "two thetas": ({"rope_parameters": BOTH, "rope_theta": 701}, r"'rope_theta' \(701\)"),
    "no description": (
        {"rope_parameters": {"full_attention": "linear"}},
        "'rope_parameters.full_attention' has a wrong",
    ),
}


@pytest.mark.parametrize("case", REFUSED_BY_LAYER)
def test_ropes_by_layer_type_that_disagree_are_an_error(case):
    fields, reason = REFUSED_BY_LAYER[case]
    with pytest.raises(UserError, match=rf"^config\.json: .*{reason}"):
        read("gemma3", **fields)
