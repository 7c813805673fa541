"""A team of models that differ: in vocabulary, in type, in family; and what its directory says of it."""

import json
import shutil

import numpy as np
import pytest
import qwix
from flax import nnx
from safetensors.numpy import load_file

from colm_jax import CoLM
from colm_jax.checkpoints.card import model_card
from colm_jax.checkpoints.describe import describe_pair
from colm_jax.checkpoints.directory import revision
from colm_jax.checkpoints.team import load_base, make_gate, pinned, save_reference, save_team
from colm_jax.errors import UserError
from colm_jax.pipeline.run import run_pipeline
from colm_jax.settings.models import Model
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import Training
from tests.checkpoints.test_huggingface import assert_same
from tests.models.families import CONFIGS, tokens, write_family
from tests.models.make_golden import transformers_logits
from tests.tiny import CHAT_TEMPLATE, SPECIAL, WORDS, edit_json, forward, write_tokenizer

SHORTER = WORDS[:28]  # as Llama 2 beside Meditron: the same words, then fewer


@pytest.fixture
def unequal(tiny_model):
    """A base of 32 words in a head of 40 rows and an expert of 28 words in a head of 36."""
    base = tiny_model("base", vocab_size=40)
    return base, tiny_model("expert", seed=1, words=SHORTER, vocab_size=36)


# The shared vocabulary.


def test_scores_are_over_the_shared_vocabulary(unequal, mesh):
    team = CoLM.from_pretrained(unequal[0], [unequal[1]])
    assert team.allowed.sum() == 28
    ids = [1, 5, 9, 11, 20]
    (scored,) = team.score([{"input_ids": ids}])
    for column, decoder in ((scored.base_log_prob, team.base), (scored.expert_log_probs[:, 0], team.experts[0])):
        _, logits = forward(*nnx.split(decoder), np.array([ids[:-1]]))
        shared = np.asarray(logits[0, :, :28], np.float64)
        expected = shared - np.log(np.exp(shared).sum(-1, keepdims=True))
        np.testing.assert_allclose(column, expected[np.arange(4), ids[1:]], atol=1e-5)
    assert scored.is_argmax.shape == (4, 2)


def test_ids_outside_are_never_written(unequal, mesh):
    base, expert = unequal
    team = CoLM.from_pretrained(base, [expert])
    for strategy in ("base", "expert", "confidence"):
        answers = team.generate([{"input_ids": [1, i]} for i in range(3, 28)], strategy=strategy, max_new_tokens=20)
        assert max(token for answer in answers for token in answer.tokens) < 28
    alone = CoLM.from_pretrained(base, [])
    answers = alone.generate([{"input_ids": [1, i]} for i in range(3, 32)], strategy="base", max_new_tokens=20)
    assert max(token for answer in answers for token in answer.tokens) < 32


@pytest.mark.parametrize("call", ["score", "generate"])
def test_texts_with_a_token_that_the_expert_lacks_are_refused(call, unequal):
    team = CoLM.from_pretrained(unequal[0], [unequal[1]])
    with pytest.raises(
        UserError, match=rf"1: token 1 is 30 \('{WORDS[30]}'\), which is not in the team's shared vocabulary"
    ):
        team.score([{"input_ids": [1, 30]}]) if call == "score" else team.generate(
            [{"input_ids": [1, 30]}], strategy="base"
        )


def test_pairing_is_described(unequal, tiny_model):
    base, expert = map(str, unequal)
    found = describe_pair([base, expert])
    assert found == {
        "can_pair": True,
        "kinds": ["resident"],
        "context": 128,
        "shared_vocabulary": 28,
        "never_written": {base: [[28, 39]], expert: [[28, 35]]},
    }
    other = str(tiny_model("other", words=(*SPECIAL, *"zyxwvutsrq"), vocab_size=13))
    found = describe_pair([base, other])
    assert found["kinds"] == ["guest"]
    assert "id 3 is ' '" in found["why_spans"]


@pytest.fixture
def endless(tiny_model):
    """A base that ends texts with a token that the expert lacks; neither has weights."""
    base, expert = tiny_model("base", words=(*WORDS, "<stop>"), vocab_size=33), tiny_model("expert", vocab_size=33)
    edit_json(base / "tokenizer_config.json", eos_token="<stop>")
    edit_json(base / "config.json", eos_token_id=32)
    for directory in (base, expert):
        (directory / "model.safetensors").unlink()
    return base, expert


def test_team_that_can_never_end_is_refused_before_weights_are_read(endless):
    said = "no text could end: the end of text, id 32 is '<stop>' in .*base and no token in .*expert"
    with pytest.raises(UserError, match=said):
        CoLM.from_pretrained(endless[0], [endless[1]])
    found = describe_pair([str(directory) for directory in endless])
    assert not found["can_pair"]
    assert "no text could end" in found["why_not"]


def test_text_ends_with_any_end_that_is_shared(endless, tmp_path, tiny_model):
    base, expert = endless
    edit_json(base / "config.json", eos_token_id=[32, 2])
    with pytest.raises(UserError, match="weights file is missing"):  # the tokenizers pair
        CoLM.from_pretrained(base, [expert])
    tiny_model("expert", vocab_size=33)
    shutil.copy(expert / "model.safetensors", base)
    team = CoLM.from_pretrained(base, [expert])
    assert team.tokenizer.eos_ids == (2,)
    (scored,) = team.score([{"prompt": "a", "completion": "b"}])
    assert scored.tokens.tolist() == [1, 4, 5, 2]


# Types.


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_expert_types_apart_from_the_base(kind, unequal):
    base, expert = unequal
    exact = CoLM.from_pretrained(base, [expert])
    team = CoLM.from_pretrained(base, [expert], expert_dtype=kind)
    prompts = [{"input_ids": [1, 5, 7]}]
    assert team.generate(prompts, strategy="base") == exact.generate(prompts, strategy="base")
    text = [{"input_ids": [1, *range(3, 27)]}]
    near, right = (t.score(text)[0].expert_log_probs for t in (team, exact))
    error = np.abs(near - right).max()
    assert error == 0 if kind == "float32" else 0 < error < (1.0 if kind == "int4" else 0.1)
    answers = team.generate([{"input_ids": [1, i]} for i in range(3, 9)], strategy="expert", max_new_tokens=30)
    assert sum(len(answer.tokens) for answer in answers) > 30


def test_an_unknown_expert_type_is_refused(unequal):
    with pytest.raises(UserError, match=r"expert_dtype must be one of .*int4, got 'int2'"):
        CoLM.from_pretrained(unequal[0], [unequal[1]], expert_dtype="int2")


# The directory.


def trained(tmp_path, tiny_model, **settings):
    """A run over texts with a chat template; returns its directory."""
    base = tiny_model("base", chat_template=CHAT_TEMPLATE)
    expert = tiny_model("expert", seed=1, words=(*WORDS, "1", "2"), vocab_size=34)
    lines = [
        {"messages": [{"role": "user", "content": c}, {"role": "assistant", "content": c * 6}]} for c in "abcdefgh"
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = RunConfig(
        base=str(base),
        experts=(str(expert),),
        data=str(data),
        dev=str(data),
        training=Training(trainable="gate"),
        **settings,
    )
    run_pipeline(config, tmp_path / "run", until="calibrate")
    return tmp_path / "run"


def test_colm_json_and_card_say_where_a_team_comes_from(tmp_path, tiny_model):
    run = trained(tmp_path, tiny_model, expert_model=Model(dtype="int8"))
    facts = json.loads((run / "team/colm.json").read_text())
    assert facts["shared_vocabulary"]["words"] == 32
    assert facts["expert_dtype"] == "int8"
    assert facts["experts"][0]["model"] == str(tmp_path / "expert")
    assert facts["provenance"]["base"]["model"] == str(tmp_path / "base")
    assert facts["provenance"]["data"]["data"]["file"] == "data.jsonl"
    manifest = json.loads((run / "train/manifest.json").read_text())
    assert manifest["inputs"]["chat_template"] == facts["chat_template"]
    card = (run / "team/README.md").read_text()
    assert card == model_card(facts)
    assert str(tmp_path) not in card
    for part in (
        "| expert 1 | expert | a local directory |",
        "data.jsonl",
        "32 tokens",
        "objective: marginal",
        "license: # to be filled in",
    ):
        assert part in card
    assert f"threshold: {facts['threshold']:.4g}" in card
    team = CoLM.from_pretrained(run / "team")
    assert team.allowed.sum() == 32
    assert isinstance(team.experts[0].layers[0].attention.query.kernel.get_value(), qwix.QArray)


def test_another_chat_template_than_in_training_is_refused(tmp_path, tiny_model):
    run = trained(tmp_path, tiny_model)
    team = tmp_path / "team"
    shutil.copytree(run / "team", team)
    edit_json(team / "tokenizer_config.json", chat_template=CHAT_TEMPLATE.replace("a?", "b?"))
    with pytest.raises(UserError, match=r"chat template .* differs from the one the team was trained with"):
        CoLM.from_pretrained(team)


def test_an_expert_with_another_vocabulary_than_in_training_is_refused(tmp_path, tiny_model):
    run = trained(tmp_path, tiny_model)
    write_tokenizer(tmp_path / "expert", WORDS[:31])
    with pytest.raises(UserError, match="another shared vocabulary"):
        CoLM.from_pretrained(run / "team")


def test_experts_from_the_hub_are_pinned(tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/0123abcd"
    snapshot.mkdir(parents=True)
    assert revision(snapshot) == "0123abcd"
    assert revision(tmp_path) is None
    assert pinned({"model": "a/b", "revision": "0123abcd"}) == "a/b@0123abcd"
    assert pinned({"model": "/here", "revision": None}) == "/here"
    assert pinned({"model": str(snapshot), "revision": "0123abcd"}) == str(snapshot)


def test_every_end_of_text_id_is_kept(tmp_path, tiny_model, mesh):
    source = tiny_model("base")
    edit_json(source / "config.json", eos_token_id=[2, 7])
    base = load_base(source, "float32", mesh)
    save_team(tmp_path / "team", base.decoder, make_gate(np.zeros((32, 1))), source, "float32", {"experts": []})
    assert load_base(tmp_path / "team", "float32", mesh).tokenizer.eos_ids == (2, 7)


# Every family as a base: team and original format, and back.


def team_of(name, tmp_path, mesh):
    """A family's tiny model as a base with a gate, stored as a team: the source, the base, the gate's kernel."""
    source = write_family(tmp_path / "source", name)
    write_tokenizer(source, (*SPECIAL, *(chr(97 + i) for i in range(57)), "<|endoftext|>"))
    base = load_base(source, "float32", mesh)
    kernel = np.random.default_rng(0).normal(size=(48, 1)).astype(np.float32)
    save_team(tmp_path / "team", base.decoder, make_gate(kernel), source, "float32", {"experts": [], "threshold": None})
    return source, kernel


@pytest.mark.parametrize("name", CONFIGS)
def test_a_team_of_every_family_is_a_plain_model_to_transformers(name, tmp_path, mesh):
    pytest.importorskip("torch", reason="needs PyTorch")
    source, _ = team_of(name, tmp_path, mesh)
    np.testing.assert_array_equal(
        transformers_logits(tmp_path / "team", tokens()), transformers_logits(source, tokens())
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_team_of_every_family_is_stored_and_read_back(name, tmp_path, mesh):
    source, kernel = team_of(name, tmp_path, mesh)
    assert_same(load_file(tmp_path / "team/model.safetensors"), load_file(source / "model.safetensors"))
    team = load_base(tmp_path / "team", "float32", mesh)
    np.testing.assert_array_equal(team.gate.kernel[...], kernel)
    save_reference(tmp_path / "reference", team, "float32")
    back = load_base(tmp_path / "reference", "float32", mesh)
    np.testing.assert_array_equal(back.gate.kernel[...], kernel)
    one, two = (forward(*nnx.split(b.decoder), tokens()[None])[1] for b in (team, back))
    np.testing.assert_array_equal(one, two)


def test_a_team_says_what_its_gate_reads(tmp_path, tiny_model, mesh):
    source = tiny_model("base")
    base = load_base(source, "float32", mesh)
    kernel = np.random.default_rng(0).normal(size=(35, 2)).astype(np.float32)
    gate = make_gate(kernel, "uncertainty")
    save_team(tmp_path / "team", base.decoder, gate, source, "float32", {"experts": []})
    facts = json.loads((tmp_path / "team/colm.json").read_text())
    assert facts["gate"] == {"width": 32, "experts": 2, "inputs": "uncertainty"}
    assert load_file(tmp_path / "team/gate.safetensors")["gate.weight"].shape == (2, 35)
    team = load_base(tmp_path / "team", "float32", mesh)
    assert team.gate.inputs == "uncertainty"
    np.testing.assert_array_equal(team.gate.kernel[...], kernel)
    with pytest.raises(UserError, match=r"inputs 'uncertainty'; train with Training.gate_inputs 'hidden', or export"):
        save_reference(tmp_path / "reference", team, "float32")
    edit_json(tmp_path / "team/colm.json", gate={"width": 32, "experts": 2, "inputs": "entropy"})
    with pytest.raises(UserError, match=r"colm.json: gate.inputs must be one of hidden, uncertainty, got 'entropy'"):
        load_base(tmp_path / "team", "float32", mesh)
    edit_json(tmp_path / "team/colm.json", gate={"width": 32, "experts": 2})  # as teams were that read hidden states
    with pytest.raises(UserError, match=r"needs 'gate.weight' of shape \[experts, 32\], holds"):
        load_base(tmp_path / "team", "float32", mesh)


def test_a_team_that_does_not_say_what_its_gate_reads_is_one_of_hidden_states(tmp_path, tiny_model, mesh):
    source = tiny_model("base")
    base, kernel = load_base(source, "float32", mesh), np.ones((32, 1), np.float32)
    save_team(tmp_path / "team", base.decoder, make_gate(kernel), source, "float32", {"experts": []})
    edit_json(tmp_path / "team/colm.json", gate={"width": 32, "experts": 1})
    team = load_base(tmp_path / "team", "float32", mesh)
    assert team.gate.inputs == "hidden"
    np.testing.assert_array_equal(team.gate.kernel[...], kernel)
