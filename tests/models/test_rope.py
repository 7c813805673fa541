"""Rotary positions: frequencies and attention factors of every kind, and the rotation, each against a slow oracle."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.checkpoints.families.fields import Fields
from colm_jax.checkpoints.families.reference import reference_class
from colm_jax.checkpoints.families.rope import RopeRules, read_rope, read_ropes_by_layer
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.errors import UserError
from colm_jax.models.cache import KVCache
from colm_jax.models.rope import angles_where, attention_factor, rope_angles, rope_frequencies, rotate, score_factor
from colm_jax.models.rope_config import Bands, DynamicNTK, LongRope, Rope, Yarn
from tests.models.families import CONFIGS, LENGTH, cached_error, parity_error, tokens, write_family
from tests.models.make_golden import transformers_logits
from tests.tiny import run

# YaRN with theta 10 over 8 dimensions: pair i turns 1000 / (2π · 10^(i/4)) times in the original context of 1000.
_YARN = Yarn(1000, beta_fast=1000 / (2 * math.pi * 10**0.25), beta_slow=1000 / (2 * math.pi * 10**0.75), truncate=False)
_INNER = dataclasses.replace(
    _YARN, beta_fast=1000 / (2 * math.pi * 10**0.375), beta_slow=1000 / (2 * math.pi * 10**0.625)
)
_STRETCHED = [1, 10**-0.25, 10**-0.5 * (1 / 2 + 1 / 8), 10**-0.75 / 4]  # kept: 1, 1, 1/2, 0

# By hand: (rope, dimensions of a head, longest text, frequencies).
BY_HAND = {
    "plain": (Rope(100.0), 4, 9, [1, 1 / 10]),
    "linear": (Rope(100.0, 4.0), 4, 9, [1 / 4, 1 / 40]),
    "part of the head": (Rope(100.0, dim=4), 10, 9, [1, 1 / 10]),
    "bands": (Rope(100.0, 2.0, Bands(2 / math.pi - 0.5, 2 / math.pi + 0.5, 4)), 4, 9, [3 / 4, 1 / 20]),
    "bands without a middle": (Rope(100.0, 2.0, Bands(0.5, 0.5, 4)), 4, 9, [1, 1 / 20]),
    "dynamic, short": (Rope(16.0, 3.0, DynamicNTK(10)), 4, 10, [1, 1 / 4]),
    "dynamic, twice as long": (Rope(16.0, 3.0, DynamicNTK(10)), 4, 20, [1, 1 / 16]),  # theta · 4²
    "longrope, short": (Rope(100.0, 1.0, LongRope((2.0, 4.0), (8.0, 16.0), 10)), 4, 10, [1 / 2, 1 / 40]),
    "longrope, long": (Rope(100.0, 1.0, LongRope((2.0, 4.0), (8.0, 16.0), 10)), 4, 11, [1 / 8, 1 / 160]),
    "yarn": (Rope(10.0, 4.0, _YARN), 8, 9, _STRETCHED),
    "yarn, borders rounded outwards": (Rope(10.0, 4.0, dataclasses.replace(_INNER, truncate=True)), 8, 9, _STRETCHED),
    "yarn, borders as they are": (
        Rope(10.0, 4.0, _INNER),
        8,
        9,
        [1, 10**-0.25, 10**-0.5 * (1 / 2 + 1 / 8), 10**-0.75 / 4],
    ),
    "yarn, borders that meet": (
        Rope(10.0, 4.0, dataclasses.replace(_YARN, beta_fast=1.0, beta_slow=1e-9, original_context=1)),
        8,
        9,
        [1, *(10 ** (-i / 4) * (1 - i / 7 * 3 / 4) for i in (1, 2, 3))],
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_frequencies_equal_those_by_hand(case):
    rope, head_dim, longest, expected = BY_HAND[case]
    found = rope_frequencies(head_dim, rope, longest)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


_E10 = math.exp(10)  # 0.1 · log = 1
FACTORS = {
    "plain": (Rope(100.0, 7.0), 1.0, 1.0),
    "yarn": (Rope(10.0, _E10, _YARN), 2.0, 1.0),
    "yarn of no stretch": (Rope(10.0, 1.0, _YARN), 1.0, 1.0),
    "yarn, given": (Rope(10.0, _E10, dataclasses.replace(_YARN, attention_factor=0.7)), 0.7, 1.0),
    "yarn, two scales": (Rope(10.0, _E10, dataclasses.replace(_YARN, mscale=2.0, mscale_all_dim=1.0)), 1.5, 4.0),
    "yarn, the scores' alone": (Rope(10.0, _E10, dataclasses.replace(_YARN, mscale_all_dim=3.0)), 2.0, 16.0),
    "longrope": (Rope(10.0, 4.0, LongRope((1.0,), (1.0,), 16)), math.sqrt(1.5), 1.0),
    "longrope of no stretch": (Rope(10.0, 0.5, LongRope((1.0,), (1.0,), 16)), 1.0, 1.0),
    "longrope, given": (Rope(10.0, 4.0, LongRope((1.0,), (1.0,), 16, 1.19)), 1.19, 1.0),
}


@pytest.mark.parametrize("case", FACTORS)
def test_factors_of_attention_equal_those_by_hand(case):
    rope, attention, score = FACTORS[case]
    assert attention_factor(rope) == pytest.approx(attention, rel=1e-12)
    assert score_factor(rope) == pytest.approx(score, rel=1e-12)


# What transformers computes from the same file.

_SIZES = {"hidden_size": 96, "num_attention_heads": 6, "max_position_embeddings": 640, "num_hidden_layers": 4}
_LATENT = {"qk_rope_head_dim": 16, "qk_nope_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 8, "v_head_dim": 8}
_ORIGINAL = "original_max_position_embeddings"


def yarn(**more):
    return {"rope_type": "yarn", "factor": 5.0, _ORIGINAL: 128, "rope_theta": 700.0, **more}


def longrope(pairs=8, **more):
    short, long = ([base + 0.25 * i for i in range(pairs)] for base in (1.0, 3.0))
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 500.0, **more}


PHI3 = RopeRules(
    partial=True, kinds={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}
)
GLM4 = RopeRules(partial=True, interleaved=True)
DEEPSEEK = RopeRules(interleaved=True, scales_scores=True, head_dim="qk_rope_head_dim")
USUAL = RopeRules()
_BANDS = {"low_freq_factor": 1.5, "high_freq_factor": 5.0, _ORIGINAL: 150}
LIVE = {
    "default": ("llama", USUAL, {"rope_type": "default", "rope_theta": 177.0}, {}),
    "linear": ("llama", USUAL, {"rope_type": "linear", "factor": 3.0, "rope_theta": 177.0}, {}),
    "dynamic": ("llama", USUAL, {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 177.0}, {}),
    "dynamic, within the context": (
        "mistral",
        USUAL,
        {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 177.0},
        {"max_position_embeddings": 100},
    ),
    "llama3": ("llama", USUAL, {"rope_type": "llama3", "factor": 6.0, "rope_theta": 5000.0, **_BANDS}, {}),
    "llama3 without a middle": (
        "llama",
        USUAL,
        {"rope_type": "llama3", "factor": 6.0, "rope_theta": 5000.0, **_BANDS, "high_freq_factor": 1.5},
        {},
    ),
    "yarn": ("qwen2", USUAL, yarn(), {}),
    "yarn, no factor": ("qwen2", USUAL, yarn(factor=None), {}),
    "yarn, given": ("qwen3", USUAL, yarn(beta_fast=20.0, beta_slow=2.5, attention_factor=0.8), {"head_dim": 16}),
    "yarn, borders as they are": ("mixtral", USUAL, yarn(truncate=False, beta_fast=9), {"head_dim": 16}),
    "yarn, two scales": ("llama", USUAL, yarn(mscale=0.7, mscale_all_dim=1.3), {}),
    "yarn, long context": ("llama", USUAL, yarn(**{_ORIGINAL: 100_000}), {}),
    "yarn of DeepSeek": ("deepseek_v3", DEEPSEEK, yarn(mscale=0.7, mscale_all_dim=1.3), _LATENT),
    "yarn of gpt-oss": ("gpt_oss", USUAL, yarn(truncate=False), {"head_dim": 16}),
    "yarn of GLM": ("glm4", GLM4, yarn(partial_rotary_factor=0.625), {"head_dim": 16}),
    "default of GLM": ("glm4", GLM4, {"rope_type": "default", "rope_theta": 90.0}, {"head_dim": 16}),
    "all of GLM": (
        "glm4",
        GLM4,
        {"rope_type": "default", "rope_theta": 90.0},
        {"head_dim": 16, "partial_rotary_factor": 1.0},
    ),
    "longrope": ("llama", USUAL, longrope(**{_ORIGINAL: 200}), {}),
    "longrope, given": ("llama", USUAL, longrope(**{_ORIGINAL: 200}, attention_factor=1.7), {}),
    "longrope, a factor": ("llama", USUAL, longrope(**{_ORIGINAL: 200}, factor=9.0), {}),
    "longrope of Phi 3": ("phi3", PHI3, longrope(), {_ORIGINAL: 200}),
    "longrope of Phi 4": ("phi3", PHI3, longrope(6, partial_rotary_factor=0.75), {_ORIGINAL: 200}),
    "longrope of Phi 4, beside": ("phi3", PHI3, longrope(6), {_ORIGINAL: 200, "partial_rotary_factor": 0.75}),
    "old longrope of Phi 3": ("phi3", PHI3, {**longrope(), "rope_type": "yarn"}, {_ORIGINAL: 200}),
}


def turned_by_transformers(reference, longest, layers=None):
    """Frequencies and attention factor."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = reference.rope_parameters if layers is None else reference.rope_parameters[layers]
    if rope["rope_type"] == "default":
        head_dim = getattr(reference, "head_dim", None) or reference.hidden_size // reference.num_attention_heads
        dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
        return (rope["rope_theta"] ** -(torch.arange(0, dim, 2).double() / dim)).numpy(), 1.0
    found, attention = ROPE_INIT_FUNCTIONS[rope["rope_type"]](reference, seq_len=longest, layer_type=layers)
    return found.numpy(), attention


@pytest.mark.parametrize("longest", [200, 201, 640, 700])
@pytest.mark.parametrize("case", LIVE)
def test_frequencies_equal_those_of_transformers(case, longest):
    pytest.importorskip("torch", reason="needs PyTorch")
    model_type, rules, parameters, more = LIVE[case]
    config = {"model_type": model_type, **_SIZES, **more, "rope_parameters": parameters}
    rope, head_dim = read_rope(Fields(config, "config.json"), rules), 16
    frequencies, attention = turned_by_transformers(reference_class(model_type)(**config), longest)
    np.testing.assert_allclose(rope_frequencies(head_dim, rope, longest), frequencies, rtol=1e-6)
    assert attention_factor(rope) == pytest.approx(attention, rel=1e-12)


def test_frequencies_by_layer_equal_those_of_transformers():
    pytest.importorskip("torch", reason="needs PyTorch")
    ropes = {"full_attention": yarn(beta_fast=9.0), "sliding_attention": {"rope_type": "default", "rope_theta": 60.0}}
    config = {"model_type": "olmo3", **_SIZES, "rope_parameters": ropes}
    reference = reference_class("olmo3")(**config)
    for rope, layers in zip(read_ropes_by_layer(Fields(config, "config.json"), ("rope_theta", None)), ropes):
        frequencies, attention = turned_by_transformers(reference, 640, layers)
        np.testing.assert_allclose(rope_frequencies(16, rope, 640), frequencies, rtol=1e-6)
        assert attention_factor(rope) == pytest.approx(attention, rel=1e-12)


def test_score_factor_equals_that_of_transformers():
    pytest.importorskip("torch", reason="needs PyTorch")
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

    for parameters in yarn(mscale=0.7, mscale_all_dim=1.3), yarn(mscale_all_dim=0.4), yarn():
        config = {"model_type": "deepseek_v3", **_SIZES, **_LATENT, "rope_parameters": parameters}
        rope = read_rope(Fields(config, "config.json"), DEEPSEEK)
        assert score_factor(rope) == pytest.approx(yarn_apply_mscale(parameters, 1.0), rel=1e-12)


# Each field of a rope changes what it computes.

_LONG = LongRope((1.0, 2.0, 3.0, 4.0), (2.0, 4.0, 6.0, 8.0), 100)
CHANGES = {
    "theta": (Rope(50.0), {"theta": 51.0}),
    "factor": (Rope(50.0, 2.0), {"factor": 3.0}),
    "factor of bands": (Rope(50.0, 2.0, Bands(1.0, 4.0, 30)), {"factor": 3.0}),
    "factor of yarn": (Rope(10.0, 2.0, _YARN), {"factor": 3.0}),
    "factor of longrope": (Rope(10.0, 2.0, _LONG), {"factor": 3.0}),
    "factor of dynamic": (Rope(10.0, 2.0, DynamicNTK(50)), {"factor": 3.0}),
    "dim": (Rope(50.0), {"dim": 4}),
    "interleaved": (Rope(50.0), {"interleaved": True}),
    "bands.low": (Rope(50.0, 2.0, Bands(1.0, 4.0, 30)), {"scaling": Bands(1.5, 4.0, 30)}),
    "bands.high": (Rope(50.0, 2.0, Bands(1.0, 4.0, 30)), {"scaling": Bands(1.0, 5.0, 30)}),
    "bands.original_context": (Rope(50.0, 2.0, Bands(1.0, 4.0, 30)), {"scaling": Bands(1.0, 4.0, 40)}),
    "dynamic.context": (Rope(50.0, 2.0, DynamicNTK(50)), {"scaling": DynamicNTK(60)}),
    **{
        f"yarn.{name}": (Rope(10.0, 2.0, _INNER), {"scaling": dataclasses.replace(_INNER, **{name: value})})
        for name, value in {
            "original_context": 1200,
            "beta_fast": 120.0,
            "beta_slow": 20.0,
            "attention_factor": 1.4,
        }.items()
    },
    "yarn.truncate": (
        Rope(10.0, 2.0, dataclasses.replace(_INNER, original_context=1100)),
        {"scaling": dataclasses.replace(_INNER, original_context=1100, truncate=True)},
    ),
    **{
        f"yarn.{name}": (
            Rope(10.0, 2.0, dataclasses.replace(_YARN, mscale=1.0, mscale_all_dim=0.5)),
            {"scaling": dataclasses.replace(_YARN, **{"mscale": 1.0, "mscale_all_dim": 0.5, name: 0.75})},
        )
        for name in ("mscale", "mscale_all_dim")
    },
    "longrope.short": (
        Rope(10.0, 2.0, dataclasses.replace(_LONG, original_context=500)),
        {"scaling": LongRope((1.0, 2.0, 3.0, 5.0), _LONG.long, 500)},
    ),
    "longrope.long": (Rope(10.0, 2.0, _LONG), {"scaling": LongRope(_LONG.short, (2.0, 4.0, 6.0, 9.0), 100)}),
    "longrope.original_context": (Rope(10.0, 2.0, _LONG), {"scaling": dataclasses.replace(_LONG, original_context=90)}),
    "longrope.attention_factor": (
        Rope(10.0, 2.0, _LONG),
        {"scaling": dataclasses.replace(_LONG, attention_factor=1.4)},
    ),
}


def test_every_field_has_a_change():
    names = {field.name for field in dataclasses.fields(Rope)} - {"scaling"}
    for prefix, kind in {"bands": Bands, "yarn": Yarn, "dynamic": DynamicNTK, "longrope": LongRope}.items():
        names |= {f"{prefix}.{field.name}" for field in dataclasses.fields(kind)}
    assert names <= set(CHANGES)


@pytest.mark.parametrize("case", CHANGES)
def test_changing_a_field_changes_the_rotation(case):
    rope, change = CHANGES[case]
    x = np.random.default_rng(0).standard_normal((1, 120, 1, 8)).astype(np.float32)

    def turned(rope):
        return np.asarray(rotate(jnp.asarray(x), rope_angles(jnp.arange(120)[None], 8, rope, 120)))

    assert np.abs(turned(rope) - turned(dataclasses.replace(rope, **change)))[0, 60:].max() > 1e-3


WRONG = {
    "theta": (lambda: Rope(0.0), "rope theta must be a positive number, got 0.0"),
    "odd": (lambda: Rope(1.0, dim=3), "rope dim must be a positive even number, got 3"),
    "none": (lambda: Rope(1.0, dim=0), "rope dim must be a positive even number, got 0"),
    "bands": (lambda: Bands(2.0, 1.0, 9), "must not be below 2.0, got 1.0"),
    "no bands": (lambda: Bands(0.0, 1.0, 9), "scaling.low must be a positive number"),
    "yarn's theta": (lambda: Rope(1.0, 2.0, _YARN), "theta must exceed 1 with yarn, got 1.0"),
    "yarn's turns": (lambda: Yarn(9, 1.0, 2.0, True), r"beta_fast \(1.0\) must not be below beta_slow \(2.0\)"),
    "yarn's attention": (lambda: Yarn(9, 2.0, 1.0, True, 0.0), "attention_factor must be a positive number, got 0.0"),
    "dynamic": (lambda: DynamicNTK(0), "scaling.context must be a positive number, got 0"),
    "a factor of longrope": (lambda: LongRope((1.0,), (0.0,), 9), "scaling.long must be a positive number, got 0.0"),
    "factors of longrope": (lambda: LongRope((1.0,), (1.0, 2.0), 9), "one size, got 1 and 2 factors"),
    "context of longrope": (lambda: LongRope((1.0,), (1.0,), 1), "original_context must exceed 1"),
    "more than the head": (lambda: Rope(9.0, dim=6).turning(4), r"dim \(6\) exceeds the head's 4"),
    "longrope of another head": (
        lambda: Rope(9.0, 1.0, LongRope((1.0,), (1.0,), 9)).turning(6),
        "1 factors for 3 pairs",
    ),
    "dynamic of one pair": (lambda: Rope(9.0, 2.0, DynamicNTK(9)).turning(2), "at least 4 dimensions, got 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_numbers_without_meaning_are_an_error(case):
    make, reason = WRONG[case]
    with pytest.raises(UserError, match=f"^model config: .*{reason}"):
        make()


# The rotation.


def turned_slowly(x, positions, rope, frequencies, factor):
    """One complex product for each pair."""
    out, n = x.astype(np.float64).copy(), len(frequencies)
    for b, t, head in np.ndindex(x.shape[:3]):
        for i in range(n):
            one, other = (2 * i, 2 * i + 1) if rope.interleaved else (i, i + n)
            z = complex(x[b, t, head, one], x[b, t, head, other])
            z *= factor * np.exp(1j * positions[b, t] * float(frequencies[i]))
            out[b, t, head, one], out[b, t, head, other] = z.real, z.imag
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [None, 2, 6])
@pytest.mark.parametrize("factor", [None, 1.3])
def test_rotation_equals_a_slow_one(interleaved, dim, factor):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, 3, 8)).astype(np.float32)
    positions = rng.integers(0, 90, (2, 5))
    rope = Rope(30.0, 2.0, None if factor is None else dataclasses.replace(_YARN, attention_factor=factor), dim)
    rope = dataclasses.replace(rope, interleaved=interleaved)
    found = rotate(jnp.asarray(x), rope_angles(jnp.asarray(positions), 8, rope, 90))
    expected = turned_slowly(x, positions, rope, rope_frequencies(8, rope, 90), factor or 1.0)
    np.testing.assert_allclose(np.asarray(found), expected, atol=2e-5)
    if dim is not None:
        np.testing.assert_array_equal(np.asarray(found)[..., dim:], x[..., dim:])


def test_rotation_keeps_the_type():
    x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    assert rotate(x, rope_angles(jnp.arange(2)[None], 8, Rope(30.0, dim=4), 2)).dtype == jnp.bfloat16


def test_chosen_angles():
    one, other = (rope_angles(jnp.arange(3)[None], 8, Rope(theta), 3) for theta in (9.0, 80.0))
    for chosen, expected in ((True, one), (False, other)):
        found = angles_where(jnp.asarray(chosen), one, other)
        np.testing.assert_array_equal(found.cos, expected.cos)
        np.testing.assert_array_equal(found.sin, expected.sin)
        assert found.interleaved is False


# Whole models.

_LONG6 = {**longrope(6), _ORIGINAL: 150}
MODELS = {
    "yarn": ("llama", {"rope_parameters": yarn(truncate=False)}),
    "yarn, two scales": ("qwen3", {"rope_parameters": yarn(mscale=0.7, mscale_all_dim=1.3)}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 177.0}}),
    "longrope, long": ("llama", {"rope_parameters": _LONG6}),
    "longrope, short": ("llama", {"rope_parameters": {**_LONG6, _ORIGINAL: 640}}),
    "yarn in layers without a window": (
        "gemma3",
        {"rope_parameters": {**CONFIGS["gemma3"]["rope_parameters"], "full_attention": yarn(attention_factor=1.3)}},
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_is_right(case, tmp_path):
    name, change = MODELS[case]
    directory = write_family(tmp_path / name, name, **change)
    assert cached_error(directory) < 1e-4
    pytest.importorskip("torch", reason="needs PyTorch")
    assert parity_error(directory, transformers_logits(directory, tokens()), np.arange(LENGTH)) < 1e-4


@pytest.mark.parametrize("size", [120, 700])
def test_cached_keys_turn_as_in_the_longest_text_whatever_the_caches_size(size, tmp_path, mesh):
    directory = write_family(tmp_path / "llama", "llama", rope_parameters=_LONG6)
    decoder = load_model(directory, "float32", mesh, stacked=False)[0]
    expected, text = np.asarray(run(decoder, tokens()[None])[0])[0], tokens()[None, :100]
    hidden, _ = decoder(text, KVCache.empty(decoder.config, 1, size, jnp.float32))
    np.testing.assert_allclose(np.asarray(hidden)[0], expected[:100], atol=1e-4)


@pytest.mark.parametrize("context", [640, 150], ids=["beyond the original context", "the original context"])
def test_a_short_text_turns_alike_with_and_without_a_cache(context, tmp_path, mesh):
    directory = write_family(tmp_path / "phi3", "phi3", max_position_embeddings=context)
    decoder = load_model(directory, "float32", mesh, stacked=False)[0]
    assert decoder.config.rope.scaling.original_context == 150
    text = tokens()[None, :100]
    full = np.asarray(run(decoder, text)[0])[0]
    hidden, _ = decoder(text, KVCache.empty(decoder.config, 1, 120, jnp.float32))
    np.testing.assert_allclose(np.asarray(hidden)[0], full, atol=1e-4)
    pytest.importorskip("torch", reason="needs PyTorch")  # transformers goes by the text, which is short
    expected = transformers_logits(directory, tokens()[:100])
    error = np.abs(np.asarray(decoder.logits(full)) - expected).max()
    assert error < 1e-4 if context == 150 else error > 1e-2


def test_dynamic_positions_beyond_the_context_are_those_of_transformers(tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch")
    change = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 177.0}}
    directory = write_family(tmp_path / "llama", "llama", **change, max_position_embeddings=300)
    assert parity_error(directory, transformers_logits(directory, tokens()), np.arange(LENGTH)) < 1e-4
