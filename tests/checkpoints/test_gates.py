"""A gate without its base: written only where the base was frozen, and applied only to that base, wherever it is."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from colm_jax import CoLM
from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.gates import describe_gate, gate_directory, write_gate
from colm_jax.checkpoints.identity import hash_base, hash_model
from colm_jax.checkpoints.outline import outline_team
from colm_jax.errors import UserError
from colm_jax.pipeline.stage import BOOKKEEPING
from tests.checkpoints.conftest import write_frozen_team
from tests.checkpoints.gguf.write import write_tiny
from tests.tiny import edit_json, write_model


@pytest.fixture
def gate(frozen, tmp_path):
    """The gate of the team, without its base."""
    write_gate(frozen[2], tmp_path / "gate", leave=BOOKKEEPING)
    return tmp_path / "gate"


def moved(base, tmp_path):
    """The base at another place; at the first nothing is left."""
    return shutil.move(base, tmp_path / "elsewhere" / "other-name")


def test_a_gate_on_its_base_is_the_team(frozen, gate, tmp_path):
    base, _, team = frozen
    (tmp_path / "elsewhere").mkdir()
    base = moved(base, tmp_path)
    whole, parts = CoLM.from_pretrained(team), CoLM.from_pretrained(base, gate=gate)
    assert parts.facts["threshold"] == whole.facts["threshold"] == 0.25
    prompts = [{"input_ids": [1, i]} for i in range(3, 11)]
    answers = parts.generate(prompts, max_new_tokens=16)
    assert answers == whole.generate(prompts, max_new_tokens=16)
    assert {source for answer in answers for source in answer.sources} == {0, 1}
    (one,), (two,) = (t.score([{"input_ids": [1, 5, 9, 11]}]) for t in (whole, parts))
    np.testing.assert_array_equal(one.gate_logits, two.gate_logits)


def test_everything_of_a_team_but_its_base_is_in_the_gates_directory(frozen, tmp_path):
    team = frozen[2]
    save_file({"risk.weight": np.ones(3, np.float32)}, team / "risk.safetensors")
    facts = json.loads((team / "colm.json").read_text())
    edit_json(team / "colm.json", risk={"file": "risk.safetensors"}, gate={**facts["gate"], "inputs": ["entropy"]})
    write_gate(team, tmp_path / "gate", leave=BOOKKEEPING)
    names = {path.name for path in (tmp_path / "gate").iterdir()}
    assert names == {"README.md", "colm.json", "gate.safetensors", "risk.safetensors"}
    written = json.loads((tmp_path / "gate/colm.json").read_text())
    assert written["contents"] == "gate"
    assert written["risk"] == {"file": "risk.safetensors"}
    assert written["gate"]["inputs"] == ["entropy"]
    np.testing.assert_array_equal(
        load_file(tmp_path / "gate/gate.safetensors")["gate.weight"],
        load_file(team / "gate.safetensors")["gate.weight"],
    )


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_the_gate_of_a_trained_base_is_not_written(trainable, tmp_path):
    _, _, team = write_frozen_team(tmp_path, trainable)
    with pytest.raises(UserError, match=rf"its base was trained with the gate \(trainable {trainable}\)"):
        write_gate(team, tmp_path / "gate")
    edit_json(team / "colm.json", provenance=None)
    with pytest.raises(UserError, match=r"colm\.json does not say which base its gate was trained on"):
        write_gate(team, tmp_path / "gate")


def test_another_base_is_refused_by_both_hashes(frozen, gate, tmp_path):
    base, expert, _ = frozen
    one, two = hash_model(base)[:16], hash_model(expert)[:16]
    with pytest.raises(UserError, match=rf"sha256 {one}, and .*expert has sha256 {two}; "):
        outline_team(expert, gate=gate)
    # Weights that are not here when the outline is read are looked at when they are.
    weights = (expert / "model.safetensors").read_bytes()
    (expert / "model.safetensors").unlink()
    assert outline_team(expert, [base], gate=gate).gate == gate
    (expert / "model.safetensors").write_bytes(weights)
    edit_json(base / "config.json", rms_norm_eps=1e-4)  # the same weights, which compute something else
    with pytest.raises(UserError, match=f"was trained on the base .* with sha256 {one}"):
        CoLM.from_pretrained(base, gate=gate)


def test_a_gate_is_no_base(gate):
    with pytest.raises(UserError, match=r"is a gate without its base; give it as the gate, and as the base .*base"):
        outline_team(gate)
    with pytest.raises(UserError, match=r"no gate in it \(colm\.json is missing\)"):
        gate_directory(gate.parent / "base")


def test_experts_of_a_gate_may_be_others(frozen, gate, tmp_path):
    other = write_model(tmp_path / "other", seed=5)
    found = outline_team(frozen[0], [other], gate=gate)
    assert (found.directories[1], found.gate_experts, found.facts["threshold"]) == (other, 1, 0.25)


def test_the_gate_of_a_whole_team_serves_its_base(frozen):
    base, _, team = frozen
    assert describe_gate(team, base)["fits"]
    assert outline_team(base, gate=team).gate == team


def test_a_gate_is_described_with_its_base(frozen, gate):
    base, expert, _ = frozen
    found = describe_gate(gate, base)
    shape = {"width": 32, "experts": 1, "inputs": "hidden"}
    assert (found["format"], found["shape"], found["threshold"]) == ("gate", shape, 0.25)
    assert (found["base"]["sha256"], found["fits"], found["why_not"]) == (hash_model(base), True, None)
    found = describe_gate(gate, expert)
    assert not found["fits"]
    assert "was trained on the base" in found["why_not"]
    (expert / "model.safetensors").unlink()
    assert describe_gate(gate, expert)["fits"] is None


# The hash of a base.


def test_a_plain_models_hash_is_the_known_one_wherever_it_is(frozen, tmp_path):
    base = frozen[0]
    assert hash_base(base) == hash_model(base)
    (tmp_path / "elsewhere").mkdir()
    known = hash_model(base)
    assert hash_base(moved(base, tmp_path)) == known


def test_a_teams_hash_as_a_base_is_without_its_gate(frozen):
    team = frozen[2]
    known = hash_base(team)
    assert known != hash_model(team)
    (team / "colm.json").unlink()
    (team / "gate.safetensors").unlink()
    assert hash_base(team) == hash_model(team) == known
    (team / "consolidated.safetensors").write_bytes(b"for another program")
    assert hash_base(team) == known


def test_a_renamed_gguf_file_is_known_again(tmp_path, monkeypatch):
    monkeypatch.setenv("COLM_CACHE", str(tmp_path / "colm"))
    known = hash_model(resolve(write_tiny(tmp_path / "tiny.gguf")))
    (tmp_path / "elsewhere").mkdir()
    other = shutil.move(tmp_path / "tiny.gguf", tmp_path / "elsewhere" / "renamed.gguf")
    assert hash_base(resolve(other), "tiny.gguf") == known
    assert hash_base(resolve(other)) != known
