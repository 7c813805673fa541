"""Output of `colm inspect`: facts of each model, its sharding, and whether models pair."""

import io
import json
import math
import re

import jax
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from colm_jax.checkpoints.describe import describe, describe_pair
from colm_jax.checkpoints.huggingface import match_tensors, read_config
from colm_jax.checkpoints.layout import stored_shapes
from colm_jax.checkpoints.reader import TensorOnDisk
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.parallel.mesh import MESH_AXES
from colm_jax.report.inspection import show_models
from tests.models.families import write_family
from tests.tiny import WORDS, write_model, write_team, write_tokenizer


def shown(facts):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show_models(facts, console)
    return console.file.getvalue()


def facts_of(*models, mesh=(1, 1, 1)):
    found = [describe(model, jax.sharding.AbstractMesh(mesh, MESH_AXES)) for model in models]
    return found[0] if len(found) == 1 else {"models": found, "pair": describe_pair([*map(str, models)])}


def rows(text):
    """Return the cells of each row of the first table, by its name."""
    lines = text.split("Sharding of")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip().split("  ") if cell.strip()] for line in lines]
    return {name: values for name, *values in filter(None, cells)}


@pytest.fixture
def models(tmp_path):
    base = write_model(tmp_path / "base", dtype="bfloat16")
    return base, write_model(tmp_path / "expert", seed=1, words=WORDS[:-1], context=64)


def test_table_shows_the_facts_of_each_model(models):
    found = rows(shown(facts_of(*models)))
    assert found["kind"] == ["model", "model"]
    assert found["family"] == ["llama", "llama"]
    assert found["parameters"] == ["17,568", "17,568"]
    assert found["type on disk"] == ["bfloat16", "float32"]
    assert found["size on disk"] == ["35.1 kB", "70.3 kB"]
    assert found["memory as bfloat16"] == ["35.1 kB", "35.1 kB"]
    assert found["KV cache per token"] == ["128 bytes (bfloat16)"] * 2
    assert found["context"] == ["128 tokens", "64 tokens"]
    assert found["vocabulary"] == ["32 tokens", "31 tokens, 32 rows in the LM head"]
    assert found["end of text"] == ["</s> (2)", "</s> (2)"]
    assert found["chat template"] == ["no", "no"]
    assert found["tokenizer"] == ["WordLevel", "WordLevel"]
    assert found["RoPE"] == ["default, theta 10,000"] * 2
    assert found["sliding window"] == ["none", "none"]
    assert found["parameters per device"] == ["17,568 (100%)"] * 2


def test_a_team_names_its_experts(models, tmp_path):
    base, expert = models
    found = rows(shown(facts_of(write_team(tmp_path / "team", base, expert))))
    assert (found["kind"], found["experts"]) == (["team"], [str(expert)])


def test_models_that_pair_show_the_shared_vocabulary(models):
    text = shown(facts_of(*models))
    assert "These models can pair: 31 shared tokens, context 64 tokens\n" in text
    assert f"{models[0]}: 1 of its token ids are never generated: 31\n" in text


def test_models_with_different_tokenizers_pair_by_spans(models, tmp_path):
    other = write_model(tmp_path / "other", words=(*WORDS[:3], *reversed(WORDS[3:])))
    text = shown(facts_of(models[0], other))
    assert "These models can pair, span by span: expert 1 is a guest (its own tokenizer)\n" in text
    assert "Not token by token: tokenizers disagree: id 3 is ' ' in" in text


def test_models_that_do_not_pair_show_the_reason(models):
    facts = facts_of(*models)
    facts["pair"] = {"can_pair": False, "why_not": "no text could end"}
    assert "These models cannot pair: no text could end\n" in shown(facts)


def test_a_mixture_shows_its_active_parameters_and_a_scaled_rope_its_reach(tmp_path):
    write_family(tmp_path, "gpt-oss")
    write_tokenizer(tmp_path)
    found = rows(shown(facts_of(tmp_path)))
    (parameters,) = found["parameters"]
    count, active = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", parameters))
    assert count == sum(math.prod(shape) for shape in stored_shapes(read_config(tmp_path)).values())
    networks = 4 * 5 * (3 * 48 * 72 + 2 * 72 + 48)  # layers, networks, kernels and biases of each
    assert count - active == networks * 2 // 5
    assert found["RoPE"] == ["yarn, theta 5,000, factor 5, beyond 130 tokens"]
    assert found["sliding window"] == ["90 tokens in 2 of 4 layers"]


def test_long_lists_of_ids_are_shortened(models):
    facts = facts_of(*models)
    facts["pair"]["never_written"] = {"m": [[i, i + 1] for i in range(0, 21, 3)]}
    assert "m: 14 of its token ids are never generated: 0-1, 3-4, 6-7, 9-10, 12-13 and 2 more ranges\n" in shown(facts)


def test_mesh_shows_the_sharding_of_each_parameter(models):
    facts = facts_of(models[0], mesh=(1, 2, 2))
    text = shown(facts)
    assert rows(text)["mesh"] == ["data=1 fsdp=2 tensor=2"]
    assert rows(text)["parameters per device"] == [f"{facts['parameters_per_device']:,} (25%)"]
    lines = [line.split() for line in text.splitlines()]
    assert ["layers.attention.query.kernel", *"2 × 32 × 4 × 8".split(), "–,", "fsdp,", "tensor,", "–"] in lines
    assert ["norm.scale", "32", "fsdp"] in lines
    assert "Sharding" not in shown(facts_of(models[0]))


def test_names_are_printed_as_text(tmp_path):
    assert "[bold]m\ufffd" in shown({**facts_of(write_model(tmp_path / "m")), "model": "[bold]m\x1b"})


def test_missing_weights_are_reported(models):
    text = shown({**facts_of(models[0]), "stored_as": None, "bytes_on_disk": None})
    assert rows(text)["type on disk"] == ["weights are not downloaded"] and rows(text)["size on disk"] == ["–"]


def test_only_headers_of_weights_are_read(tmp_path, monkeypatch):
    """Also for a tied model with a stored head, whose values loading compares."""
    directory = write_model(tmp_path / "tied", tied=True)
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError):
        match_tensors(directory)
    monkeypatch.setattr(TensorOnDisk, "rows", lambda *_: pytest.fail("reads weights"))
    assert rows(shown(facts_of(directory)))["type on disk"] == ["float32"]


def test_the_command_prints_a_table_or_json(models, capsys):
    assert main(["inspect", *map(str, models)]) == 0
    assert "These models can pair" in capsys.readouterr().out
    assert main(["inspect", *map(str, models), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(facts_of(*models)))
