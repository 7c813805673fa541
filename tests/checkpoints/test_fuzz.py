"""Damaged directories: loading is correct, or a one-line error that names the file."""

import json

import numpy as np
import pytest

from colm_jax.checkpoints.huggingface import load_model, match_tensors
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import load_tokenizer
from tests.models.families import CONFIGS, write_family


def survives(load, directory):
    """Return whether it loads; if not, check that the error is one line that names a file of the directory."""
    try:
        load()
    except UserError as error:
        assert "\n" not in str(error)
        assert str(directory) in str(error)
        return False
    return True


def header_size(data):
    return 8 + int.from_bytes(data[:8], "little")


def test_flipped_header_byte_is_harmless_or_an_error(tiny_model, mesh):
    directory = tiny_model()
    file = directory / "model.safetensors"
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    places = rng.choice(header_size(whole), 120, replace=False).tolist() + list(range(8))
    refused = 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        refused += not survives(lambda: load_model(directory, "float32", mesh), directory)
    assert refused > len(places) * 0.8  # the rest: padding, metadata, blanks


def test_truncated_file_is_an_error(tiny_model, mesh):
    directory = tiny_model()
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    for kept in np.random.default_rng(0).integers(0, len(whole), 50).tolist():
        file.write_bytes(whole[:kept])
        assert not survives(lambda: load_model(directory, "float32", mesh), directory)


@pytest.mark.parametrize("name", ["llama-3", "mixtral", "qwen3", "gemma3"])
def test_any_value_of_any_config_field_is_loaded_or_an_error(name, tmp_path, mesh):
    directory = write_family(tmp_path / name, name)
    config = json.loads((directory / "config.json").read_text())
    odd = [None, True, 0, -1, 1.5, 10**30, "x", [None], {"rope_type": []}, float("nan")]
    accepted = []
    for field in config:
        for value in odd:
            (directory / "config.json").write_text(json.dumps({**config, field: value}))
            if survives(lambda: match_tensors(directory), directory):
                accepted.append((field, value))
    meant = {"max_position_embeddings", "sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping"}
    meant |= {"final_logit_softcapping", "rms_norm_eps", "use_sliding_window", "max_window_layers", "attention_bias"}
    meant |= {
        "tie_word_embeddings",
        "num_key_value_heads",
        "head_dim",
        "layer_types",
        "hidden_activation",
        "rope_parameters",
    }
    assert {field for field, _ in accepted} <= meant, accepted


INDEXES = {
    "no JSON": "{",
    "a list": "[]",
    "no map": "{}",
    "an empty map": {"weight_map": {}},
    "a number for a file": {"weight_map": {"model.norm.weight": 1}},
    "a file elsewhere": {"weight_map": {"model.norm.weight": "../other/model.safetensors"}},
    "a shard that is missing": {"weight_map": {"model.norm.weight": "model-00002.safetensors"}},
}


@pytest.mark.parametrize("case", INDEXES)
def test_invalid_index_is_an_error(case, tiny_model, capsys):
    directory, content = tiny_model(), INDEXES[case]
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "model.safetensors.index.json").write_text(text)
    assert main(["inspect", str(directory)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(directory) in lines[0]


@pytest.mark.parametrize(
    "content", ["", "{}", '{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}', "[1]"]
)
def test_invalid_tokenizer_is_an_error(content, tiny_model):
    directory = tiny_model()
    (directory / "tokenizer.json").write_text(content)
    assert not survives(lambda: load_tokenizer(directory), directory)


def test_unchanged_family_configs_load(tmp_path, mesh):
    for name in CONFIGS:
        assert survives(lambda name=name: load_model(write_family(tmp_path / name, name), "float32", mesh), tmp_path)
