"""Every family: logits of transformers, the same through the cache, on eight devices, and after a round trip."""

import dataclasses
import json

import numpy as np
import pytest

from colm_jax.checkpoints.families import FAMILIES, from_huggingface, to_huggingface
from colm_jax.checkpoints.huggingface import load_model, read_config
from colm_jax.errors import UserError
from colm_jax.models.config import ModelConfig
from docs.tables.families import BEGIN, DOCS, END, HEAD, measure
from tests.models.families import CONFIGS, LENGTH, parity_error, tokens, write_family
from tests.models.make_golden import GOLDEN, transformers_logits
from tests.tiny import edit_json, run

TOLERANCE = 1e-4


@pytest.fixture(params=CONFIGS)
def directory(request, tmp_path):
    return write_family(tmp_path / request.param, request.param)


def test_every_family_is_here():
    assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_golden_logits_are_of_the_parity_text_and_say_something(name):
    with np.load(GOLDEN / f"family-{name}.npz") as golden:
        np.testing.assert_array_equal(golden["tokens"], tokens())
        assert golden["logits"].std() > 0.5


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_is_right(name):
    row = measure(name)
    assert row.parity < TOLERANCE
    assert row.cached < TOLERANCE
    assert row.sharded < TOLERANCE
    assert row.round_trip


def test_the_table_of_the_docs_shows_every_family():
    text = DOCS.read_text(encoding="utf-8")
    shown = [line.split(" | ") for line in text.split(BEGIN)[1].split(END)[0].strip().splitlines()]
    assert " | ".join(shown[0]) == HEAD
    assert [row[0].removeprefix("| ") for row in shown[2:]] == list(CONFIGS)
    for row in shown[2:]:
        assert row[2] == "exact"
        assert all(float(row[i].removesuffix(" |")) < TOLERANCE for i in (1, 3, 4))


def test_logits_equal_a_live_transformers_model(directory):
    pytest.importorskip("torch", reason="live parity needs PyTorch; the golden logits stand for it")
    assert parity_error(directory, transformers_logits(directory, tokens()), np.arange(LENGTH)) < TOLERANCE


def test_a_written_config_is_read_back(directory):
    config = read_config(directory)
    written = json.loads(json.dumps(to_huggingface(config, "float32", bos_id=1, eos_id=2)))
    assert from_huggingface(written, "config.json") == config


def test_a_written_config_means_the_same_to_transformers(directory):
    pytest.importorskip("torch", reason="needs PyTorch")
    before = transformers_logits(directory, tokens())
    written = to_huggingface(read_config(directory), "float32", bos_id=1, eos_id=2)
    (directory / "config.json").write_text(json.dumps(written))
    np.testing.assert_array_equal(transformers_logits(directory, tokens()), before)


def full_rope(**fields):
    full = {**CONFIGS["gemma3"]["rope_parameters"]["full_attention"], **fields}
    return {"rope_parameters": {**CONFIGS["gemma3"]["rope_parameters"], "full_attention": full}}


def local_rope(**fields):
    local = {"rope_type": "default", "rope_theta": 50.0, **fields}
    return {"rope_parameters": {**CONFIGS["gemma3"]["rope_parameters"], "sliding_attention": local}}


def llama3(**fields):
    return {"rope_parameters": {**CONFIGS["llama-3"]["rope_parameters"], **fields}}


# For each field of ModelConfig, changes of config.json behind the weights' back: (family, change, effect). No effect
# named: the last logits change; else what the error says.
CHANGES = {
    "family": [
        ("mistral", {"model_type": "llama", "sliding_window": None}, ""),
        ("llama", {"model_type": "gpt2"}, "gpt2"),
    ],
    "vocab_size": [("llama", {"vocab_size": 60}, r"expected \[60, 48\]")],
    "width": [("llama", {"hidden_size": 24}, "shape")],
    "depth": [("llama", {"num_hidden_layers": 3}, "unknown tensor 'model.layers.3")],
    "heads": [("llama", {"num_attention_heads": 8}, "self_attn")],
    "kv_heads": [("llama", {"num_key_value_heads": 1}, "self_attn")],
    "head_dim": [("llama", {"head_dim": 6, "num_attention_heads": 12, "num_key_value_heads": 4}, "")],
    "ff": [("llama", {"intermediate_size": 24}, "mlp")],
    "context": [("llama", {"max_position_embeddings": 300}, "nothing")],
    "rope": [
        ("llama", {"rope_parameters": {"rope_theta": 180.0}}, ""),
        ("llama-linear", {"rope_parameters": {"rope_type": "linear", "rope_theta": 321.0, "factor": 3.1}}, ""),
        ("llama-3", llama3(factor=7.0), ""),
        ("llama-3", llama3(low_freq_factor=1.0), ""),
        ("llama-3", llama3(high_freq_factor=8.0), ""),
        ("llama-3", llama3(original_max_position_embeddings=200), ""),
        ("llama-3", llama3(rope_theta=4000.0), ""),
        ("gemma3", full_rope(rope_theta=950.0), ""),
        ("gemma3", full_rope(factor=5.0), ""),
    ],
    "rms_eps": [("llama", {"rms_norm_eps": 0.02}, "")],
    "tied": [
        ("llama", {"tie_word_embeddings": True}, "ties the head"),
        ("qwen3", {"tie_word_embeddings": False}, "lm_head"),
    ],
    "activation": [
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation='silu'"),
    ],
    "qkv_bias": [
        ("llama", {"attention_bias": False}, "unknown tensor .*bias"),
        ("gemma2", {"attention_bias": True}, "bias"),
    ],
    "out_bias": [("qwen3", {"attention_bias": False}, "unknown tensor .*bias")],
    "ff_bias": [("llama", {"mlp_bias": False}, "unknown tensor .*mlp")],
    "qk_norm": [("qwen3", {"model_type": "qwen2"}, "unknown tensor .*norm")],
    "post_norm": [("gemma2", {"model_type": "llama", "sliding_window": None}, "unknown tensor .*norm")],
    "zero_centred_norm": [("gemma2", {"model_type": "llama", "sliding_window": None}, "unknown tensor .*norm")],
    "scaled_embedding": [("gemma2", {"model_type": "llama", "sliding_window": None}, "unknown tensor .*norm")],
    "attention_scalar": [("gemma2", {"query_pre_attn_scalar": 8}, ""), ("gemma3", {"query_pre_attn_scalar": 8}, "")],
    "attention_softcap": [
        ("gemma2", {"attn_logit_softcapping": 4.0}, ""),
        ("gemma2", {"attn_logit_softcapping": None}, ""),
        ("gemma3", {"attn_logit_softcapping": 4.0}, "attn_logit_softcapping=4.0"),
    ],
    "logit_softcap": [
        ("gemma2", {"final_logit_softcapping": 4.0}, ""),
        ("gemma3", {"final_logit_softcapping": 4.0}, ""),
    ],
    "windows": [
        ("mistral", {"sliding_window": 101}, ""),
        ("mistral", {"sliding_window": None}, ""),
        ("mixtral", {"sliding_window": 201}, ""),
        ("qwen2", {"sliding_window": 91}, ""),
        ("qwen2", {"max_window_layers": 2}, ""),
        ("qwen2", {"use_sliding_window": False}, ""),
        ("gemma2", {"sliding_window": 81}, ""),
        ("gemma2", {"layer_types": ["full_attention"] * 4}, ""),
        ("gemma3", {"layer_types": None}, ""),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 3}, ""),
        ("gemma3", {"layer_types": ["chunked_attention"] * 4}, "layer type 'chunked_attention'"),
        ("gemma3", {"layer_types": ["full_attention"]}, "'layer_types' has 1 entries for 4 layers"),
    ],
    "window_rope": [("gemma3", local_rope(rope_theta=60.0), "")],
    "mixture": [
        ("mixtral", {"num_experts_per_tok": 2}, ""),
        ("mixtral", {"num_experts_per_tok": 6}, "of 5 networks 6 cannot be active"),
        ("mixtral", {"num_local_experts": 4}, "unknown tensor|shape"),
    ],
}


def test_every_field_has_a_change():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize(
    ("name", "change", "effect"),
    [pytest.param(*case, id=f"{field}-{i}") for field, cases in CHANGES.items() for i, case in enumerate(cases)],
)
def test_changing_a_field_changes_the_output(name, change, effect, tmp_path, mesh):
    directory = write_family(tmp_path / name, name)
    _, before = run(load_model(directory, "float32", mesh)[0], tokens()[None])
    edit_json(directory / "config.json", **change)
    if effect not in ("", "nothing"):
        with pytest.raises(UserError, match=effect):
            load_model(directory, "float32", mesh)
        return
    _, after = run(load_model(directory, "float32", mesh)[0], tokens()[None])
    difference = np.abs(np.asarray(after) - np.asarray(before))[0]
    if effect == "nothing":  # the context cuts texts; the network does not know it
        assert difference.max() == 0
    else:
        assert difference[300:].max() > 1e-3


REFUSED = {
    "multimodal": ({"model_type": "gemma3"}, "only its text models"),
    "rope scaling as a word": ({"rope_scaling": "linear"}, "'rope_scaling' has a wrong type"),
    "remote code": ({"auto_map": {"AutoModel": "x.y"}}, "its own code, which is never run"),
    "quantised": ({"quantization_config": {"bits": 4}}, "already quantised"),
    "multimodal rope": ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [2, 2, 2]}}, "rope type 'mrope'"),
    "yarn of no context": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        "'original_max_position_embeddings' is missing",
    ),
    "llama3 without its bands": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "'low_freq_factor' is missing",
    ),
    "rope as text": ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "'factor' is missing or no number: '2'"),
    "infinite theta": ({"rope_theta": float("inf")}, "rope theta must be a positive number, got inf"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_configs_say_why(case):
    fields, reason = REFUSED[case]
    with pytest.raises(UserError, match=r"config\.json: ") as caught:
        from_huggingface({**_COMMON, **LLAMA_2, **fields}, "config.json")
    assert reason in str(caught.value)
