"""What is stale is decided by content."""

import json

import pytest

from colm_jax.errors import UserError
from colm_jax.pipeline.stage import STAGE_LOCK, Stage


def work(log):
    def do(directory):
        log.append(sorted({path.name for path in directory.iterdir()} - {STAGE_LOCK}))
        (directory / "a.txt").write_text("a")

    return do


def test_a_finished_stage_is_skipped_until_something_differs(tmp_path):
    stage, log = Stage("s", tmp_path / "s"), []
    assert stage.run({"data": "1"}, {"x": (1, 2)}, work(log))
    digest = stage.digest
    assert not stage.run({"data": "1"}, {"x": (1, 2)}, work(log))
    assert stage.run({"data": "2"}, {"x": (1, 2)}, work(log))
    assert stage.run({"data": "2"}, {"x": (1, 3)}, work(log))
    (stage.directory / "a.txt").write_text("damaged")
    assert stage.run({"data": "2"}, {"x": (1, 3)}, work(log))
    (stage.directory / "a.txt").unlink()
    assert stage.run({"data": "2"}, {"x": (1, 3)}, work(log))
    assert stage.run({"data": "1"}, {"x": (1, 2)}, work(log))
    assert stage.digest == digest


def test_a_broken_off_stage_keeps_its_files_only_for_the_same_request(tmp_path):
    stage, log = Stage("s", tmp_path / "s"), []

    def breaks(directory):
        (directory / "half").write_text("h")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run({"data": "1"}, {}, breaks)
    assert stage.manifest is None
    stage.run({"data": "1"}, {}, work(log))
    assert log == [["half", "started.json"]]
    with pytest.raises(KeyboardInterrupt):
        stage.run({"data": "2"}, {}, breaks)
    stage.run({"data": "3"}, {}, work(log))
    assert log[1] == ["started.json"]


def test_a_kill_while_a_stage_begins_or_is_emptied_leaves_it_to_be_begun_again(tmp_path, monkeypatch):
    stage, log = Stage("s", tmp_path / "s"), []
    stage.directory.mkdir()
    (stage.directory / "started.json.tmp").write_text('{"sch')
    stage.run({"data": "1"}, {}, work(log))
    (stage.directory / "shards").mkdir()
    (stage.directory / "shards/1").write_text("of data 1")

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("colm_jax.pipeline.stage.remove_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.run({"data": "2"}, {}, work(log))
    stage.run({"data": "2"}, {}, work(log))
    assert log == [["started.json"], ["started.json"]]
    assert not stage.run({"data": "2"}, {}, work(log))
    assert sorted(path.name for path in stage.directory.iterdir()) == ["a.txt", "manifest.json"]


def test_inputs_that_are_wrong_leave_no_directory_but_what_was_written_stays(tmp_path):
    def refuses(directory):
        raise UserError("line 3")

    def writes(directory):
        (directory / "checkpoint").write_text("c")
        raise UserError("loss")

    (tmp_path / "there").mkdir()
    for directory, left in ((tmp_path / "new/run/s", tmp_path / "new"), (tmp_path / "there/s", tmp_path / "there/s")):
        with pytest.raises(UserError, match="line 3"):
            Stage("s", directory).run({}, {}, refuses)
        assert not left.exists()
    assert (tmp_path / "there").exists()
    with pytest.raises(UserError, match="loss"):
        Stage("s", tmp_path / "s").run({}, {}, writes)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"checkpoint", "started.json"}


def test_the_manifest_names_files_settings_and_packages(tmp_path):
    stage = Stage("s", tmp_path / "s")
    stage.run({"data": "1"}, {"x": 1}, work([]))
    manifest = json.loads((stage.directory / "manifest.json").read_text())
    assert manifest["stage"] == "s"
    assert manifest["settings"] == {"x": 1}
    assert list(manifest["files"]) == ["a.txt"]
    assert "jax" in manifest["packages"]


def test_files_count_wherever_the_run_lies(tmp_path):
    stage = Stage("a", tmp_path / "logs/a")
    stage.run({}, {}, lambda directory: (directory / "x").write_text("1"))
    assert list(stage.manifest["files"]) == ["x"]
    (stage.directory / "x").write_text("2")
    assert stage.run({}, {}, lambda directory: None)


def test_a_directory_of_the_users_is_never_emptied(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="name a new directory"):
        Stage("s", tmp_path).run({}, {}, work([]))
    assert (tmp_path / "thesis.txt").read_text() == "precious"
