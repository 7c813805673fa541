"""Publishing on a Hub and loading from it, over HTTP by huggingface_hub, without the real one."""

import json

import pytest

from colm_jax import CoLM
from colm_jax.checkpoints.directory import resolve, revision
from colm_jax.checkpoints.gates import describe_gate, write_gate
from colm_jax.checkpoints.hub import pin, publish
from colm_jax.checkpoints.outline import outline_team
from colm_jax.checkpoints.publish import prepare
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from tests.tiny import write_model

PROMPTS = [{"input_ids": [1, i]} for i in range(3, 9)]


def files_in(directory):
    """The files of a directory by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.fixture
def published(hub, frozen, capsys):
    """Base and expert on the Hub, and the team pushed by the command: what the command printed."""
    base, expert, team = frozen
    hub.create("me/base", files=files_in(base))
    hub.create("me/expert", files=files_in(expert))
    names = ["--experts", "me/expert", "--base_model", "me/base"]
    assert main(["push", str(team), "me/team", "--license", "mit", *names]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_pushed_team_is_found_and_writes_the_same(published, hub, frozen):
    team = CoLM.from_pretrained("me/team")
    assert team.generate(PROMPTS, max_new_tokens=12) == CoLM.from_pretrained(frozen[2]).generate(
        PROMPTS, max_new_tokens=12
    )
    assert [revision(directory) for directory in team.directories] == [
        published["commit"],
        hub.branches["me/expert"]["main"],
    ]
    assert team.facts["experts"][0]["revision"] == hub.branches["me/expert"]["main"]
    assert team.facts["provenance"]["base"]["revision"] == hub.branches["me/base"]["main"]


def test_experts_stay_at_the_commit_of_publishing(published, hub, tmp_path):
    pinned = hub.branches["me/expert"]["main"]
    hub.commit("me/expert", "main", {**hub.commits["me/expert"][pinned], "config.json": b"changed"})
    found = outline_team(f"me/team@{published['commit']}")
    assert [revision(directory) for directory in found.directories] == [published["commit"], pinned]


def test_a_teams_outline_downloads_its_gate_and_no_weights(published, hub):
    hub.asked.clear()
    found = outline_team("me/team")
    assert (found.gate_experts, found.facts["threshold"]) == (1, 0.25)
    asked = "\n".join(hub.asked)
    assert "me/team/resolve" in asked
    assert "gate.safetensors" in asked
    assert "model.safetensors" not in asked


def test_one_commit_holds_all_and_removes_what_is_stale(published, hub, frozen):
    team = frozen[2]
    before = len(hub.commits["me/team"])
    stale = {"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b"{}", "photo.png": b""}
    files = {**hub.commits["me/team"][published["commit"]], **stale}
    hub.commit("me/team", "main", files)
    (team / "risk.safetensors").write_bytes((team / "gate.safetensors").read_bytes())
    found = publish(prepare(team, "me/team", experts=["me/expert"]), message="Second")
    assert len(hub.commits["me/team"]) == before + 2
    assert hub.messages[-1] == "Second"
    assert found["removed"] == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    names = set(hub.commits["me/team"][found["commit"]])
    assert {"photo.png", "risk.safetensors", "model.safetensors", "colm.json"} <= names
    assert not names & {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}


def test_nothing_is_published_where_the_upload_fails(hub, frozen):
    hub.failures["PUT /lfs/"] = (403, "no room")
    with pytest.raises(UserError, match="me/team"):
        publish(prepare(frozen[2], "me/team", experts=["me/expert"]), message="m")
    (files,) = hub.commits["me/team"].values()
    assert set(files) == {".gitattributes"}


def test_another_model_is_not_replaced(hub, frozen):
    files = {"config.json": b"{}", "model.safetensors": b"", "onnx/model.safetensors": b""}
    before = hub.create("me/team", files=files)
    with pytest.raises(UserError, match=r"me/team: holds another model \(config.json, model.safetensors\)"):
        publish(prepare(frozen[2], "me/team", experts=["me/expert"]), message="m")
    assert hub.branches["me/team"]["main"] == before


def test_a_branch_and_a_private_repository(hub, frozen):
    upload = prepare(frozen[2], "me/team", experts=["me/expert"])
    found = publish(upload, private=True, branch="v2", message="m")
    assert found["private"]
    assert hub.branches["me/team"]["v2"] == found["commit"]
    assert "colm.json" not in hub.commits["me/team"][hub.branches["me/team"]["main"]]
    assert revision(resolve("me/team@v2")) == found["commit"]
    hub.private["me/team"] = False
    with pytest.raises(UserError, match="exists and is public, and would not become private"):
        publish(upload, private=True, message="m")


def test_a_pushed_gate_serves_the_base_on_the_hub_and_here(published, hub, frozen, tmp_path, capsys):
    base, _, team = frozen
    write_gate(team, tmp_path / "gate")
    names = ["--experts", "me/expert", "--base_model", "me/base"]
    assert main(["push", str(tmp_path / "gate"), "me/gate", *names]) == 0
    commit = json.loads(capsys.readouterr().out)["commit"]
    assert set(hub.commits["me/gate"][commit]) == {".gitattributes", "README.md", "colm.json", "gate.safetensors"}
    expected = CoLM.from_pretrained(team).generate(PROMPTS, max_new_tokens=12)
    for where in ("me/base", base):
        found = CoLM.from_pretrained(where, gate=f"me/gate@{commit}")
        assert found.generate(PROMPTS, max_new_tokens=12) == expected
    hub.create("me/other", files=files_in(write_model(tmp_path / "other", seed=9)))
    with pytest.raises(
        UserError, match=r"was trained on the base me/base@\w+ with sha256 \w+, and me/other has sha256"
    ):
        CoLM.from_pretrained("me/other", gate="me/gate")
    assert describe_gate("me/gate")["revision"] == commit


def test_a_dry_run_asks_nothing(hub, frozen, capsys):
    arguments = ["push", str(frozen[2]), "me/team", "--experts", "me/expert", "--dry_run", "--license", "mit"]
    assert main(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["files"]["model.safetensors"] == (frozen[2] / "model.safetensors").stat().st_size
    assert shown["card"]["license"] == "mit"
    assert "commit" not in shown
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "said"), [(401, "log in by"), (403, "may write there"), (404, "check owner, name"), (500, "try again")]
)
@pytest.mark.parametrize("where", ["POST /api/repos/create", "GET /api/models/me/expert"])
def test_errors_of_the_hub_are_one_line(where, status, said, hub, frozen, capsys):
    hub.create("me/expert")
    hub.failures[where] = (status, "the Hub says no")
    assert main(["push", str(frozen[2]), "me/team", "--experts", "me/expert"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"colm: me/{'team' if 'create' in where else 'expert'}")
    assert str(status) in line
    assert said in line
    assert "me/team" not in hub.commits


def test_a_hub_that_cannot_be_reached_is_one_line(hub, frozen, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for arguments in (["push", str(frozen[2]), "me/team", "--experts", "me/expert"], ["inspect", "me/team"]):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "me/" in line
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        pin("me/expert")


def test_a_login_is_needed(hub, frozen, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"not logged in to the Hub; run `hf auth login`, or set HF_TOKEN"):
        publish(prepare(frozen[2], "me/team", experts=["me/expert"]), message="m")
    assert hub.commits == {}
