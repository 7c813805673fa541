"""Rotary positions in config.json: both spellings, and errors if they disagree."""

import json

import pytest

from colm_jax.checkpoints.families import from_huggingface
from colm_jax.checkpoints.families.fields import Fields
from colm_jax.checkpoints.families.reference import reference_class
from colm_jax.checkpoints.families.rope import (
    RopeRules,
    read_rope,
    read_ropes_by_layer,
    write_both_ropes,
    write_rope,
)
from colm_jax.errors import UserError
from colm_jax.models.rope import attention_factor, score_factor
from colm_jax.models.rope_config import Bands, DynamicNTK, LongRope, Rope, Yarn
from tests.models.families import CONFIGS

LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 200.0}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 90}
LLAMA3 = {"rope_type": "llama3", "factor": 5.0, "rope_theta": 300.0, **BANDS}
_ORIGINAL = "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "factor": 5.0, "rope_theta": 300.0, _ORIGINAL: 90}
SHORT, LONG = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5], [4.0, 4.5, 5.0, 5.5, 6.0, 6.5]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 300.0, _ORIGINAL: 160}
_LONGROPE = LongRope(tuple(SHORT), tuple(LONG), 160)
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 9.0}


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
    "yarn": ("qwen2", {"rope_parameters": YARN}, Rope(300.0, 5.0, Yarn(90, 32.0, 1.0, True))),
    "yarn, every field": (
        "mistral",
        {"rope_parameters": {**YARN, "beta_fast": 20, "beta_slow": 2, "truncate": False, "attention_factor": 0.9}},
        Rope(300.0, 5.0, Yarn(90, 20.0, 2.0, False, 0.9)),
    ),
    "yarn, two scales": (
        "mixtral",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": None}},
        Rope(300.0, 5.0, Yarn(90, 32.0, 1.0, True, None, 0.7, 1.3)),
    ),
    "yarn, scales of nothing": (
        "llama",
        {"rope_parameters": {**YARN, "mscale": 0, "mscale_all_dim": 0.0}},
        Rope(300.0, 5.0, Yarn(90, 32.0, 1.0, True)),
    ),
    "yarn, old spelling": (
        "qwen2",
        {"rope_theta": 300, "rope_scaling": {"type": "yarn", "factor": 5, _ORIGINAL: 90}},
        Rope(300.0, 5.0, Yarn(90, 32.0, 1.0, True)),
    ),
    "yarn, defaults beside none": (
        "qwen3",
        {"rope_parameters": YARN, "rope_theta": 300, "rope_scaling": {**YARN, "beta_fast": 32, "truncate": True}},
        Rope(300.0, 5.0, Yarn(90, 32.0, 1.0, True)),
    ),
    "yarn, its factor from the contexts": (
        "llama",
        {"rope_parameters": {**YARN, "factor": None}},
        Rope(300.0, 640 / 90, Yarn(90, 32.0, 1.0, True)),
    ),
    "dynamic": ("llama", {"rope_parameters": _DYNAMIC}, Rope(9.0, 2.0, DynamicNTK(640))),
    "dynamic, old spelling": (
        "mistral",
        {"rope_theta": 9, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        Rope(9.0, 2.0, DynamicNTK(640)),
    ),
    "longrope": ("llama", {"rope_parameters": LONGROPE}, Rope(300.0, 4.0, _LONGROPE)),
    "longrope, its original context beside": (
        "qwen3",
        {"rope_parameters": without(LONGROPE, _ORIGINAL), _ORIGINAL: 160},
        Rope(300.0, 4.0, _LONGROPE),
    ),
    "longrope, a factor": ("llama", {"rope_parameters": {**LONGROPE, "factor": 3}}, Rope(300.0, 3.0, _LONGROPE)),
    "longrope, attention": (
        "llama",
        {"rope_parameters": {**LONGROPE, "attention_factor": 1.5}},
        Rope(300.0, 1.0, LongRope(tuple(SHORT), tuple(LONG), 160, 1.5)),
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


@pytest.mark.parametrize("case", [case for case in ACCEPTED if not case.endswith("beside")])
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
    "a multimodal type": (
        {"rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}},
        "rope type 'mrope' is not supported, only 'default', 'linear', .* and 'longrope'",
    ),
    "multimodal sections": ({"rope_parameters": {"rope_theta": 9.0, "mrope_section": [2, 2, 2]}}, "'mrope_section'"),
    "a proportional type": ({"rope_parameters": {**LINEAR, "rope_type": "proportional"}}, "rope type 'proportional'"),
    "phi 3's name": ({"rope_parameters": {**LONGROPE, "rope_type": "su"}}, "rope type 'su'"),
    "yarn, no original context": (
        {"rope_parameters": without(YARN, _ORIGINAL)},
        f"'{_ORIGINAL}' is missing",
    ),
    "yarn, no factor": ({"rope_parameters": without(YARN, "factor")}, "'factor' is missing"),
    "yarn, two original contexts": ({"rope_parameters": YARN, _ORIGINAL: 91}, rf"'{_ORIGINAL}' \(91\) and .* disagree"),
    "yarn, bands": ({"rope_parameters": {**YARN, "low_freq_factor": 1.0}}, "'low_freq_factor'"),
    "yarn, a word": ({"rope_parameters": {**YARN, "truncate": "no"}}, "'truncate' must be true or false, got 'no'"),
    "yarn, null": ({"rope_parameters": {**YARN, "truncate": None}}, "'truncate' must be true or false, got None"),
    "yarn, no turns": ({"rope_parameters": {**YARN, "beta_fast": 0}}, "beta_fast must be a positive number, got 0"),
    "yarn, attention twice": (
        {"rope_parameters": {**YARN, "attention_factor": 1.1, "mscale": 1.0, "mscale_all_dim": 1.0}},
        r"'mscale' \(1\) has no effect beside 'attention_factor'",
    ),
    "yarn, half of a ratio": (
        {"rope_parameters": {**YARN, "mscale": 0.7}},
        r"'mscale' \(0.7\) has no effect without 'mscale_all_dim'",
    ),
    "yarn, the other half": (
        {"rope_parameters": {**YARN, "mscale_all_dim": 0.7}},
        r"'mscale_all_dim' \(0.7\) has no effect without 'mscale'",
    ),
    "yarn, scaled otherwise": ({"rope_parameters": YARN, "rope_scaling": {**YARN, "beta_slow": 2.0}}, "disagree"),
    "yarn of linear": ({"rope_parameters": {**LINEAR, "beta_fast": 32.0}}, "'beta_fast'"),
    "dynamic, no factor": ({"rope_parameters": without(_DYNAMIC, "factor")}, "'factor' is missing"),
    "dynamic, an original context": ({"rope_parameters": {**_DYNAMIC, _ORIGINAL: 90}}, f"'{_ORIGINAL}'"),
    "longrope, no list": (
        {"rope_parameters": {**LONGROPE, "long_factor": 3.0}},
        "'long_factor' is missing or no list: 3",
    ),
    "longrope, no number": (
        {"rope_parameters": {**LONGROPE, "short_factor": [*SHORT[1:], True]}},
        "'short_factor' is missing or no number: True",
    ),
    "longrope, too few": (
        {"rope_parameters": {**LONGROPE, "short_factor": SHORT[1:], "long_factor": LONG[1:]}},
        "5 factors for 6 pairs",
    ),
    "longrope, two sizes": ({"rope_parameters": {**LONGROPE, "short_factor": SHORT[1:]}}, "got 5 and 6 factors"),
    "longrope, no original context": (
        {"rope_parameters": without(LONGROPE, _ORIGINAL)},
        f"'{_ORIGINAL}' is missing",
    ),
    "longrope, of no context": ({"rope_parameters": {**LONGROPE, _ORIGINAL: 0}}, "original_context must be a positive"),
    "longrope, attention twice": (
        {"rope_parameters": {**LONGROPE, "factor": 3.0, "attention_factor": 1.5}},
        r"'factor' \(3\) has no effect beside 'attention_factor'",
    ),
    "no number": ({"rope_parameters": {**LINEAR, "rope_theta": None}}, "'rope_theta' is missing or no number: None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ropes_that_disagree_are_an_error(case):
    fields, reason = REFUSED[case]
    with pytest.raises(UserError, match=rf"^config\.json: .*{reason}"):
        read("llama", **fields)


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_written_rope_is_read_back(case):
    name, _, expected = ACCEPTED[case]
    written = json.loads(json.dumps(write_both_ropes(expected)))
    assert read(name, **written).rope == expected
    assert reread(name, **written).rope == expected
    assert read(name, rope_parameters=write_rope(expected)).rope == expected
    old = without(written, "rope_parameters")
    assert read(name, **old).rope == expected


# What other families read.

PHI3 = RopeRules(
    partial=True, kinds={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}
)
GLM4 = RopeRules(partial=True, interleaved=True)
DEEPSEEK = RopeRules(interleaved=True, scales_scores=True, head_dim="qk_rope_head_dim")
USUAL = RopeRules()
_TINY = {"hidden_size": 48, "num_attention_heads": 4, "head_dim": 12, "max_position_embeddings": 640}


def read_as(model_type, rules, **fields):
    return read_rope(Fields({"model_type": model_type, **_TINY, **fields}, "config.json"), rules)


OTHERS = {
    "phi 3": (
        "phi3",
        PHI3,
        {"rope_scaling": without(LONGROPE, _ORIGINAL), _ORIGINAL: 160},
        Rope(300.0, 4.0, _LONGROPE),
    ),
    "phi 3, both": ("phi3", PHI3, {"rope_scaling": LONGROPE, _ORIGINAL: 160}, Rope(300.0, 4.0, _LONGROPE)),
    "phi 3, su": ("phi3", PHI3, {"rope_scaling": {**LONGROPE, "rope_type": "su"}, _ORIGINAL: 160}, None),
    "phi 3, yarn": ("phi3", PHI3, {"rope_scaling": {**LONGROPE, "rope_type": "yarn"}, _ORIGINAL: 160}, None),
    "phi 3, two names": ("phi3", PHI3, {"rope_scaling": {**LONGROPE, "type": "su"}, _ORIGINAL: 160}, None),
    "phi 3, plain": ("phi3", PHI3, {"rope_theta": 9.0}, Rope(9.0)),
    "phi 3, part": ("phi3", PHI3, {"rope_theta": 9.0, "partial_rotary_factor": 0.5}, Rope(9.0, dim=6)),
    "glm 4, nothing": ("glm4", GLM4, {}, Rope(1e4, dim=6, interleaved=True)),
    "glm 4, all": ("glm4", GLM4, {"partial_rotary_factor": 1.0}, Rope(1e4, interleaved=True)),
    "glm 4, within": (
        "glm4",
        GLM4,
        {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 0.7}, "partial_rotary_factor": 0.7},
        Rope(9.0, dim=8, interleaved=True),
    ),
    "deepseek": (
        "deepseek_v3",
        DEEPSEEK,
        {"rope_parameters": {**YARN, "mscale_all_dim": 0.7}, "qk_rope_head_dim": 12},
        Rope(300.0, 5.0, Yarn(90, 32.0, 1.0, True, None, None, 0.7), interleaved=True),
    ),
    "deepseek, attention": (
        "deepseek_v3",
        DEEPSEEK,
        {"rope_parameters": {**YARN, "mscale_all_dim": 0.7, "attention_factor": 1.5}, "qk_rope_head_dim": 12},
        Rope(300.0, 5.0, Yarn(90, 32.0, 1.0, True, 1.5, None, 0.7), interleaved=True),
    ),
    "gpt-oss, nothing": ("gpt_oss", USUAL, {}, Rope(150000.0, 32.0, Yarn(4096, 32.0, 1.0, False))),
    "gpt-oss, theta": ("gpt_oss", USUAL, {"rope_theta": 9.0}, Rope(9.0, 32.0, Yarn(4096, 32.0, 1.0, False))),
    "gpt-oss, plain": ("gpt_oss", USUAL, {"rope_parameters": {}}, Rope(150000.0)),
    "gpt-oss, theta alone": ("gpt_oss", USUAL, {"rope_parameters": {"rope_theta": 9.0}}, Rope(9.0)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_rope_is_read_by_the_rules_of_its_family(case):
    model_type, rules, fields, expected = OTHERS[case]
    expected = Rope(300.0, 4.0, _LONGROPE) if expected is None else expected
    rope = read_as(model_type, rules, **fields)
    assert rope == expected
    extra = {key: value for key, value in fields.items() if key == "qk_rope_head_dim"}
    written = json.loads(json.dumps(write_both_ropes(rope, 12 if rules.partial else None)))
    assert read_as(model_type, rules, **written, **extra) == rope
    if case != "gpt-oss, plain":  # the class itself writes what it was given
        made = reference_class(model_type)(**{**_TINY, **fields}).to_dict()
        assert read_as(model_type, rules, **without(made, *_TINY, "model_type")) == rope
    again = reference_class(model_type)(**{**_TINY, **written, **extra}).to_dict()
    assert read_as(model_type, rules, **without(again, *_TINY, "model_type")) == rope


OTHERS_REFUSED = {
    "linear in phi 3": (
        "phi3",
        PHI3,
        {"rope_parameters": LINEAR},
        "rope type 'linear' is not supported, only 'default'",
    ),
    "the original context of phi 3": (
        "phi3",
        PHI3,
        {"rope_parameters": LONGROPE},
        f"'{_ORIGINAL}' is 160, but the file has none outside, where transformers' default of 4096 goes first",
    ),
    "two original contexts": ("phi3", PHI3, {"rope_parameters": LONGROPE, _ORIGINAL: 161}, "disagree"),
    "two names": ("phi3", PHI3, {"rope_parameters": {**LONGROPE, "type": "default"}}, "'type' .* disagree"),
    "two parts": (
        "glm4",
        GLM4,
        {"rope_parameters": {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 1.0},
        "'partial_rotary_factor' .* disagree",
    ),
    "no part": ("glm4", GLM4, {"partial_rotary_factor": 0.0}, "above 0 and at most 1, got 0.0"),
    "more than the head": ("glm4", GLM4, {"partial_rotary_factor": 1.5}, "above 0 and at most 1, got 1.5"),
    "an odd part": ("glm4", GLM4, {"partial_rotary_factor": 0.6}, "turns 7 of 12 dimensions, which makes no pairs"),
    "null": ("glm4", GLM4, {"partial_rotary_factor": None}, "'partial_rotary_factor' is missing or no number: None"),
    "null within": ("phi3", PHI3, {"rope_parameters": {"partial_rotary_factor": None}}, "no number: None"),
    "half a ratio": (
        "deepseek_v3",
        DEEPSEEK,
        {"rope_parameters": {**YARN, "mscale": 0.7}},
        "'mscale' .* has no effect without 'mscale_all_dim'",
    ),
    "scores of a plain rope": (
        "deepseek_v3",
        DEEPSEEK,
        {"rope_parameters": {**LINEAR, "mscale_all_dim": 1.0}},
        "'mscale_all_dim'",
    ),
}


@pytest.mark.parametrize("case", OTHERS_REFUSED)
def test_a_rope_against_the_rules_of_its_family_is_an_error(case):
    model_type, rules, fields, reason = OTHERS_REFUSED[case]
    with pytest.raises(UserError, match=reason):
        read_as(model_type, rules, qk_rope_head_dim=12, **fields)


@pytest.mark.parametrize("head_dim", range(2, 300))
def test_a_written_part_of_a_head_is_read_back(head_dim):
    rules = RopeRules(partial=True)
    for dim in range(2, head_dim + 1, 2):
        rope = Rope(9.0, dim=None if dim == head_dim else dim)
        assert read_as("phi3", rules, head_dim=head_dim, rope_parameters=write_rope(rope, head_dim)) == rope


def test_a_part_is_not_written_without_the_heads_size():
    with pytest.raises(ValueError, match="needs the head's size"):
        write_rope(Rope(9.0, dim=4))


# Sizes and ropes of published files; longrope's factors are made up. (fields, rope, factors of attention and scores)

_1_TO_2, _1_TO_48 = [1 + i / 48 for i in range(48)], [1.0 + i for i in range(48)]
_PHI = {
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "hidden_size": 3072,
    "rope_theta": 10000.0,
    "rope_scaling": {"long_factor": _1_TO_48, "short_factor": _1_TO_2, "type": "longrope"},
}
_PHI_ROPE = LongRope(tuple(_1_TO_2), tuple(_1_TO_48), 4096)
PUBLISHED = {
    "Phi-3-mini-128k": (
        "phi3",
        PHI3,
        {**_PHI, "num_attention_heads": 32},
        (Rope(10000.0, 32.0, _PHI_ROPE), 1.1902380714238083, 1.0),
    ),
    "Phi-3-mini-128k, first version": (
        "phi3",
        PHI3,
        {**_PHI, "num_attention_heads": 32, "rope_scaling": {**_PHI["rope_scaling"], "type": "su"}},
        (Rope(10000.0, 32.0, _PHI_ROPE), 1.1902380714238083, 1.0),
    ),
    "Phi-4-mini": (
        "phi3",
        PHI3,
        {**_PHI, "num_attention_heads": 24, "partial_rotary_factor": 0.75},
        (Rope(10000.0, 32.0, _PHI_ROPE, dim=96), 1.1902380714238083, 1.0),
    ),
    "Qwen2.5-7B with yarn": (
        "qwen2",
        USUAL,
        {"hidden_size": 3584, "num_attention_heads": 28, "max_position_embeddings": 32768, "rope_theta": 1000000.0}
        | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
        (Rope(1e6, 4.0, Yarn(32768, 32.0, 1.0, True)), 1.138629436111989, 1.0),
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        DEEPSEEK,
        {"hidden_size": 7168, "num_attention_heads": 128, "qk_rope_head_dim": 64, "max_position_embeddings": 163840}
        | {"rope_theta": 10000}
        | {
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            }
        },
        (Rope(1e4, 40.0, Yarn(4096, 32.0, 1.0, True, None, 1.0, 1.0), interleaved=True), 1.0, 1.8738542070926265),
    ),
    "gpt-oss-20b": (
        "gpt_oss",
        USUAL,
        {"hidden_size": 2880, "num_attention_heads": 64, "head_dim": 64, "max_position_embeddings": 131072}
        | {"rope_theta": 150000, "initial_context_length": 4096}
        | {
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            }
        },
        (Rope(150000.0, 32.0, Yarn(4096, 32.0, 1.0, False)), 1.3465735902799727, 1.0),
    ),
    "Llama-3.2-1B": (
        "llama",
        USUAL,
        {"hidden_size": 2048, "num_attention_heads": 32, "head_dim": 64, "max_position_embeddings": 131072}
        | {"rope_theta": 500000.0}
        | {
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            }
        },
        (Rope(500000.0, 32.0, Bands(1.0, 4.0, 8192)), 1.0, 1.0),
    ),
    "Llama-4-Scout": (
        "llama4_text",
        RopeRules(interleaved=True),
        {"hidden_size": 5120, "num_attention_heads": 40, "head_dim": 128, "max_position_embeddings": 10485760}
        | {"rope_theta": 500000.0}
        | {
            "rope_scaling": {
                "factor": 16.0,
                "high_freq_factor": 1.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            }
        },
        (Rope(500000.0, 16.0, Bands(1.0, 1.0, 8192), interleaved=True), 1.0, 1.0),
    ),
    "GLM-4-9B-0414": (
        "glm4",
        GLM4,
        {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "max_position_embeddings": 32768}
        | {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        (Rope(1e4, dim=64, interleaved=True), 1.0, 1.0),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_ropes_of_published_files_are_read(name):
    model_type, rules, config, (expected, attention, score) = PUBLISHED[name]
    rope = read_rope(Fields({"model_type": model_type, **config}, "config.json"), rules)
    assert rope == expected
    assert attention_factor(rope) == pytest.approx(attention, rel=1e-12)
    assert score_factor(rope) == pytest.approx(score, rel=1e-12)
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    written = write_both_ropes(rope, head_dim if rules.partial else None)
    rest = without(config, "rope_theta", "rope_scaling", "partial_rotary_factor", _ORIGINAL)
    assert read_rope(Fields({"model_type": model_type, **rest, **written}, "config.json"), rules) == rope


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
    "yarn": (
        {"rope_parameters": {**BOTH, "full_attention": {**YARN, "truncate": True}}},
        Rope(300.0, 5.0, Yarn(90, 32.0, 1.0, True)),
        Rope(60.0),
    ),
    "longrope": (
        {"rope_parameters": {**BOTH, "full_attention": LONGROPE}},
        Rope(300.0, 4.0, _LONGROPE),
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
    "yarn, borders as they are": (
        {"rope_parameters": {**BOTH, "full_attention": {**YARN, "truncate": False}}},
        "'truncate' is false, which transformers ignores in this family",
    ),
    "yarn, no original context": (
        {"rope_parameters": {**BOTH, "full_attention": without(YARN, _ORIGINAL)}},
        f"'{_ORIGINAL}' is missing",
    ),
    "part of the head": (
        {"rope_parameters": {**BOTH, "full_attention": {**FULL, "partial_rotary_factor": 0.5}}},
        "'partial_rotary_factor'",
    ),
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


# OLMo 3: the same two kinds of layers, and one theta outside, which only layers without a window use.

OLMO3 = {
    "published": (
        {
            "max_position_embeddings": 65536,
            "rope_theta": 500000,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "yarn",
            },
        },
        Rope(500000.0, 8.0, Yarn(8192, 32.0, 1.0, True, 1.2079441541679836)),
        Rope(500000.0),
    ),
    "a theta": ({"rope_theta": 7.0}, Rope(7.0), Rope(500000.0)),
    "both": ({"rope_parameters": BOTH}, Rope(700.0, 3.0), Rope(60.0)),
}


@pytest.mark.parametrize("case", OLMO3)
def test_ropes_of_olmo_by_layer_type_are_read(case):
    fields, full, windowed = OLMO3[case]
    config = {**_TINY, **fields}
    for found in config, reference_class("olmo3")(**config).to_dict():
        found = Fields({**found, "model_type": "olmo3"}, "config.json")
        assert read_ropes_by_layer(found, ("rope_theta", None)) == (full, windowed)
