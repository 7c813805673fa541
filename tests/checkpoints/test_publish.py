"""What is published of a team: nothing that is not the team's, no place on this machine, a card that the Hub reads."""

import json

import pytest
from huggingface_hub import ModelCard

from colm_jax.checkpoints.card import Stated, model_card
from colm_jax.checkpoints.gates import write_gate
from colm_jax.checkpoints.hub_names import HubName, is_local, last_part, name_on_hub
from colm_jax.checkpoints.publish import prepare
from colm_jax.checkpoints.team import read_facts
from colm_jax.errors import UserError
from colm_jax.pipeline.stage import BOOKKEEPING
from tests.tiny import edit_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def facts_of(upload):
    """The published colm.json."""
    return json.loads(upload.files["colm.json"])


def test_no_place_of_this_machine_is_published(frozen, tmp_path):
    team = frozen[2]
    edit_json(team / "colm.json", calibration={"curve": [{"file": str(tmp_path / "dev.jsonl")}]})
    edit_json(team / "tokenizer_config.json", name_or_path=str(frozen[0]))
    upload = prepare(team, "me/team", experts=["me/expert"], leave=BOOKKEEPING)
    texts = [held for held in upload.files.values() if isinstance(held, bytes)]
    texts += [held.read_bytes() for held in upload.files.values() if not isinstance(held, bytes)]
    assert not any(str(tmp_path).encode() in text for text in texts)
    assert facts_of(upload)["provenance"]["base"]["model"] == "base"
    assert facts_of(upload)["calibration"]["curve"] == [{"file": "dev.jsonl"}]
    assert "the base is known as" in upload.notes[1]
    here = read_facts(team)  # which stays as it is
    assert here["experts"][0]["model"] == str(frozen[1])


def test_only_files_of_a_team_are_published(frozen):
    team = frozen[2]
    for name in (".env", "notes.txt", "ledger.jsonl", "credentials.json", "LICENSE", "risk.safetensors"):
        (team / name).write_bytes((team / "gate.safetensors").read_bytes() if name.endswith("tensors") else b"mine")
    (team / "logs").mkdir()
    upload = prepare(team, "me/team", experts=["me/expert"], leave=BOOKKEEPING)
    assert set(upload.files) == {
        *("README.md", "colm.json", "config.json", "model.safetensors", "gate.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "LICENSE", "risk.safetensors"),
    }
    assert upload.left_out == (".env", "credentials.json", "ledger.jsonl", "logs", "notes.txt")
    assert upload.sizes["LICENSE"] == 4


def test_experts_are_named_as_others_load_them(frozen):
    team = frozen[2]
    with pytest.raises(UserError, match=r"expert 1 is .*expert, which others cannot load; publish it too, and name"):
        prepare(team, "me/team")
    with pytest.raises(UserError, match="2 names for 1 experts"):
        prepare(team, "me/team", experts=["a/b", "c/d"])
    with pytest.raises(UserError, match=r"'\./expert': is no name of the Hub"):
        prepare(team, "me/team", experts=["./expert"])
    upload = prepare(team, "me/team", experts=[f"me/expert:Q4.gguf@{COMMIT}"])
    (expert,) = facts_of(upload)["experts"]
    assert (expert["model"], expert["revision"]) == ("me/expert:Q4.gguf", COMMIT)
    assert expert["sha256"] == read_facts(team)["experts"][0]["sha256"]
    assert upload.experts == upload.card["experts"] == [f"me/expert:Q4.gguf@{COMMIT}"]
    edit_json(team / "colm.json", experts=[{"model": "me/expert", "revision": COMMIT}])  # as of a run with Hub names
    assert prepare(team, "me/team").experts == [f"me/expert@{COMMIT}"]


@pytest.mark.parametrize(
    ("address", "reachable"),
    [
        ("https://api.example.com/v1#m", True),
        ("http://8.8.8.8:8000/v1#m", True),
        ("http://localhost:8000/v1#m", False),
        ("http://127.0.0.1:8000/v1#m", False),
        ("http://10.1.2.3/v1#m", False),
        ("http://gpu1:8000/v1#m", False),
        ("https://llm.corp.internal/v1#m", False),
    ],
)
def test_endpoints_of_the_own_network_are_not_published(address, reachable, frozen):
    if reachable:
        upload = prepare(frozen[2], "me/team", experts=[address])
        assert facts_of(upload)["experts"][0]["model"] == address
        assert any("others need access" in note for note in upload.notes)
    else:
        with pytest.raises(UserError, match="which others cannot load"):
            prepare(frozen[2], "me/team", experts=[address])


@pytest.mark.parametrize("name", ["team", "a/b/c", "a/b@main", "a/b:f.gguf", "a b/c", "-a/b", "a/b..c", "", "./team"])
def test_names_that_the_hub_does_not_take_are_refused(name, frozen):
    with pytest.raises(UserError, match="is no name of"):
        prepare(frozen[2], name, experts=["me/expert"])


def test_directories_that_are_no_team_are_refused(frozen, tmp_path):
    base, _, team = frozen
    with pytest.raises(UserError, match=r"base: is no team \(colm\.json is missing\)"):
        prepare(base, "me/team")
    with pytest.raises(UserError, match=r"is no team .*; name .*/team$"):
        prepare(tmp_path, "me/team")
    with pytest.raises(UserError, match="no such directory"):
        prepare(tmp_path / "nowhere", "me/team")
    (team / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights file is missing"):
        prepare(team, "me/team", experts=["me/expert"])


def test_a_gate_for_other_experts_than_are_named_is_refused(frozen):
    edit_json(frozen[2] / "colm.json", experts=[])
    with pytest.raises(UserError, match=r"holds a gate for 1 experts, and colm\.json names 0"):
        prepare(frozen[2], "me/team")


@pytest.mark.parametrize("secret", ["hf_" + "a1B2" * 8, "sk-" + "a" * 32, "-----BEGIN RSA PRIVATE KEY-----"])
def test_secrets_are_refused(secret, frozen):
    (frozen[2] / "README.md").write_text(f"---\nlicense: mit\n---\n\nrun with {secret}\n")
    with pytest.raises(UserError, match=r"README\.md: holds what looks like a secret") as error:
        prepare(frozen[2], "me/team", experts=["me/expert"])
    assert secret not in str(error.value)


# The card.


def test_the_cards_metadata_are_those_that_the_hub_reads(frozen):
    stated = Stated(license="apache-2.0", datasets=("roneneldan/TinyStories",), language=("en",))
    upload = prepare(frozen[2], "me/team", stated, ["me/expert"], f"me/base@{COMMIT}")
    card = ModelCard(upload.files["README.md"].decode())
    assert card.data.to_dict() == upload.card
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "colm-jax")
    assert (card.data.base_model, card.data.base_model_relation) == ("me/base", "adapter")
    assert (card.data.datasets, card.data.language) == (["roneneldan/TinyStories"], ["en"])
    assert {"co-llm", "colm-jax", "team"} <= set(card.data.tags)
    assert "--base me/team" in card.text
    assert f"| base | me/base | {COMMIT} |" in card.text
    assert "[me/expert](https://huggingface.co/me/expert)" in card.text


def test_a_card_without_a_licence_says_so_and_parses(frozen):
    facts = read_facts(frozen[2])
    card = ModelCard(model_card(facts))
    assert card.data.license is None
    assert "to be filled in" in card.text
    notes = prepare(frozen[2], "me/team", experts=["me/expert"]).notes
    assert any("no licence is named" in note for note in notes)


def test_a_trained_base_is_a_finetune_of_the_given_one(frozen):
    edit_json(
        frozen[2] / "colm.json",
        provenance={
            "base": {"model": "owner/base", "revision": COMMIT, "sha256": "0" * 64},
            "training": {"trainable": "all"},
        },
    )
    upload = prepare(frozen[2], "me/team", experts=["me/expert"])
    assert (upload.card["base_model"], upload.card["base_model_relation"]) == ("owner/base", "finetune")


def test_an_edited_card_keeps_its_text_and_its_metadata(frozen):
    (frozen[2] / "README.md").write_text("---\nlicense: mit\ntags: [mine]\nmetrics: [f1]\n---\n\n# My own words\n")
    upload = prepare(frozen[2], "me/team", Stated(language=("en",)), ["me/expert"])
    assert "# My own words" in upload.files["README.md"].decode()
    assert upload.card["license"] == "mit"
    assert upload.card["metrics"] == ["f1"]
    assert upload.card["tags"][0] == "mine"
    assert "co-llm" in upload.card["tags"]
    assert upload.card["language"] == ["en"]
    assert prepare(frozen[2], "me/team", Stated(license="apache-2.0"), ["me/expert"]).card["license"] == "apache-2.0"
    (frozen[2] / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(UserError, match=r"README\.md: its metadata cannot be read"):
        prepare(frozen[2], "me/team", experts=["me/expert"])


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (Stated(license="Apache 2.0"), "license 'Apache 2.0': is no identifier"),
        (Stated(license="other"), "license 'other': needs its name"),
        (Stated(license="mit", license_link="https://x"), "are those of license 'other'"),
        (Stated(datasets=("/data/x",)), "dataset '/data/x': is no name"),
    ],
)
def test_metadata_that_the_hub_would_refuse_are_refused(stated, said, frozen):
    with pytest.raises(UserError, match=said):
        prepare(frozen[2], "me/team", stated, ["me/expert"])


def test_a_published_gate_names_its_base(frozen, tmp_path):
    write_gate(frozen[2], tmp_path / "gate")
    with pytest.raises(UserError, match="a gate needs it: name it as others load it"):
        prepare(tmp_path / "gate", "me/gate", experts=["me/expert"])
    upload = prepare(tmp_path / "gate", "me/gate", None, ["me/expert"], f"me/base@{COMMIT}")
    assert set(upload.files) == {"README.md", "colm.json", "gate.safetensors"}
    assert f"--base me/base@{COMMIT} --gate me/gate" in upload.files["README.md"].decode()
    known = facts_of(upload)["provenance"]["base"]
    assert known["sha256"] == read_facts(frozen[2])["provenance"]["base"]["sha256"]
    assert "gate" in upload.card["tags"]


# Names.


def test_names_of_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    assert HubName.parse(f"a/b:c.gguf@{COMMIT}") == HubName("a/b", "c.gguf", COMMIT)
    assert HubName.parse("a/b") == HubName("a/b")
    for text in ("/a/b", "~/a", "./a", "..", "C:\\models\\a", "C:/a", "\\\\host\\a", "file:///a", "gs://bucket/a"):
        assert is_local(text), text
        assert name_on_hub({"model": text, "revision": None}) is None
    for text in ("a/b", "data.jsonl", "https://host/v1#m", ".gitignore", "next_token_accuracy"):
        assert not is_local(text), text
    assert [last_part(path) for path in ("/a/b", "/a/b/", "C:\\a\\b")] == ["b"] * 3
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    assert name_on_hub({"model": "a/b", "revision": None}) is None  # a directory here
    assert name_on_hub({"model": "a/b", "revision": COMMIT}) == HubName("a/b", None, COMMIT)
