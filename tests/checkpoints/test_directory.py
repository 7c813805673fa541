"""Token ids and weight files named by a checkpoint directory."""

import json

import pytest

from colm_jax.checkpoints.directory import weight_files
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.text.special import token_ids
from colm_jax.text.tokenizer import load_tokenizer
from tests.tiny import edit_json


@pytest.mark.parametrize(
    ("value", "expected"), [(None, ()), (0, (0,)), (7, (7,)), ([7, 3, 7], (7, 3, 7)), ([], ()), ("left out", ())]
)
def test_token_ids_may_be_one_several_or_none(value, expected):
    config = {} if value == "left out" else {"eos_token_id": value}
    assert token_ids(config, "eos_token_id", "config.json") == expected


NO_IDS = ["2", "</s>", 2.0, [2, None], True, [False], -1, [3, -1], {"id": 2}, [[2]], float("nan")]


@pytest.mark.parametrize("value", NO_IDS, ids=str)
@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id"])
def test_invalid_token_id_is_an_error_that_names_it(name, value):
    with pytest.raises(UserError, match=rf"generation_config\.json: field '{name}' holds .*no token id"):
        token_ids({name: value}, name, "generation_config.json")


@pytest.mark.parametrize(("config", "size"), [({"vocab_size": 9}, None), ({}, 9), ({"vocab_size": 50}, 9)])
def test_token_id_outside_the_vocabulary_is_an_error(config, size):
    assert token_ids({**config, "eos_token_id": [8]}, "eos_token_id", "config.json", size) == (8,)
    with pytest.raises(UserError, match=r"config\.json: field 'eos_token_id' holds 9, and the model has only 9 tokens"):
        token_ids({**config, "eos_token_id": [2, 9]}, "eos_token_id", "config.json", size)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["2", [2, None], 32])  # the model has 32 tokens
def test_loading_names_the_file_of_an_invalid_token_id(file, value, tiny_model, capsys):
    directory = tiny_model()
    (directory / "generation_config.json").write_text("{}")
    edit_json(directory / file, eos_token_id=value)
    assert main(["inspect", str(directory)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{directory / file}: field 'eos_token_id' holds" in line


def test_end_of_text_ids_are_the_tokenizers_then_the_files(tiny_model):
    directory = tiny_model()  # config.json and tokenizer: 2
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2, 7]}))
    assert load_tokenizer(directory).eos_ids == (2, 5, 7)


# Weight files.


def index(directory, *files):
    weights = {f"tensor-{i}": file for i, file in enumerate(files)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    for file in files:
        (directory / file).touch()


def test_index_with_another_single_file_is_an_error(tmp_path):
    index(tmp_path, "model-1.safetensors", "model-2.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"two sets of weights: .*model-1\.safetensors.* and model\.safetensors exists"):
        weight_files(tmp_path)


def test_index_that_lists_only_the_single_file_is_accepted(tmp_path):
    index(tmp_path, "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize(
    "other", ["pytorch_model.bin", "consolidated.safetensors", "model-00003.safetensors", "adapter_model.safetensors"]
)
def test_files_that_transformers_does_not_read_are_not_read(other, tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / other).touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_adapter_is_an_error(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match=r"adapter_config\.json: adapters .* merge it"):
        weight_files(tmp_path)
