"""A team's outline, read without weights, equals the loaded team."""

import numpy as np
import pytest

from colm_jax import CoLM
from colm_jax.checkpoints.outline import outline_team
from colm_jax.checkpoints.team import load_base, save_reference
from colm_jax.errors import UserError
from tests.tiny import WORDS, edit_json, write_model, write_team


@pytest.fixture
def models(tmp_path):
    base = write_model(tmp_path / "base")
    expert = write_model(tmp_path / "expert", seed=1, words=WORDS[:-1], context=64)
    return base, expert, write_team(tmp_path / "team", base, expert)


@pytest.mark.parametrize("form", ["model", "team", "reference"])
def test_outline_equals_the_loaded_team(models, tmp_path, mesh, form):
    base, expert, team = models
    if form == "reference":
        save_reference(tmp_path / "reference", load_base(team, "float32", mesh), "float32")
    given = {"model": (base, [expert]), "team": (team, None), "reference": (tmp_path / "reference", [expert])}[form]
    loaded = CoLM.from_pretrained(*given)
    for directory in (given[0], expert):
        (directory / "model.safetensors").unlink()
    found = outline_team(*given)
    assert list(found.directories) == loaded.directories
    assert (found.context, found.experts) == (loaded.context, 1) == (64, 1)
    np.testing.assert_array_equal(found.allowed, loaded.allowed)
    assert found.gate_experts == (None if loaded.gate is None else loaded.gate.kernel.shape[1])
    assert found.encode_prompts(["abc"], ["p"]) == [loaded.tokenizer.encode("abc")]


def test_models_that_do_not_pair_are_an_error_before_weights_are_read(models, tmp_path):
    base, expert, team = models
    other = write_model(tmp_path / "other", words=(*WORDS[:3], *reversed(WORDS[3:])))
    for directory in (base, expert, team, other):
        (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="tokenizers disagree: id 3"):
        outline_team(base, [other], spans="tokens")
    with pytest.raises(UserError, match="spans must be one of auto, tokens, text, got 'words'"):
        outline_team(base, [other], spans="words")
    with pytest.raises(UserError, match="spans must be text with an expert that is not here"):
        outline_team(base, ["http://localhost:1/v1#m"], spans="tokens")
    with pytest.raises(UserError, match="endpoints are for experts"):
        outline_team("http://localhost:1/v1#m", [expert])
    with pytest.raises(UserError, match="p:1: token 1 is 31"):  # which is not in the expert's vocabulary
        outline_team(base, [expert]).encode_prompts(["?"], ["p:1"])
    edit_json(team / "colm.json", shared_vocabulary={"sha256": "0"})
    with pytest.raises(UserError, match="another shared vocabulary"):
        outline_team(team)
    (team / "gate.safetensors").unlink()
    with pytest.raises(UserError, match=r"gate\.safetensors: file is missing"):
        outline_team(team)


def test_kinds_of_experts_follow_from_tokenizers_and_addresses(models, tmp_path):
    base, expert, _ = models
    other = write_model(tmp_path / "other", words=(*WORDS[:3], *reversed(WORDS[3:])))
    endpoint = "http://localhost:1/v1#m"

    def kinds(*experts, spans="auto"):
        found = outline_team(base, experts, spans=spans)
        return found.kinds, found.shares_tokenizer

    assert kinds(expert) == (("resident",), True)
    assert kinds(expert, spans="tokens") == (("guest",), True)
    assert kinds(expert, spans="text") == (("guest",), False)
    assert kinds(expert, other, endpoint) == (("guest", "guest", "remote"), False)
    assert kinds() == ((), True)
    assert outline_team(base, [other]).context == 128  # the base's; the expert's own views are validated apart
