"""Every family: logits of transformers, the same through the cache, on eight devices, and after a round trip."""

import json

import numpy as np
import pytest

from colm_jax.checkpoints.families import FAMILIES, from_huggingface, to_huggingface
from colm_jax.checkpoints.huggingface import read_config
from colm_jax.errors import UserError
from docs.tables.families import BEGIN, DOCS, END, HEAD, measure
from tests.models.families import CONFIGS, LENGTH, parity_error, tokens, write_family
from tests.models.make_golden import GOLDEN, transformers_logits
from tests.models.published import COMMON, LLAMA_2

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


REFUSED = {
    "multimodal without a text model": ({"model_type": "gemma3"}, "'text_config' of the multimodal 'gemma3'"),
    "another multimodal model": ({"model_type": "qwen2_vl"}, "model_type 'qwen2_vl' is not supported, only llama, "),
    "rope scaling as a word": ({"rope_scaling": "linear"}, "'rope_scaling' has a wrong type"),
    "remote code": ({"auto_map": {"AutoModel": "x.y"}}, "its own code, which is never run"),
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
        from_huggingface({**COMMON, **LLAMA_2, **fields}, "config.json")
    assert reason in str(caught.value)
