"""What is stale is decided by content."""

import json
import resource
import threading

import numpy as np
import pytest

from colm_jax.errors import MachineError, UserError
from colm_jax.pipeline.stage import STAGE_LOCK, StageDirectory, run_in_store
from colm_jax.storage import save_array, write_text


def work(log):
    def do(directory):
        log.append(sorted({path.name for path in directory.iterdir()} - {STAGE_LOCK}))
        (directory / "a.txt").write_text("a")

    return do


def test_a_finished_stage_is_skipped_until_something_differs(tmp_path):
    stage, log = StageDirectory("s", tmp_path / "s"), []
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
    stage, log = StageDirectory("s", tmp_path / "s"), []

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
    stage, log = StageDirectory("s", tmp_path / "s"), []
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
            StageDirectory("s", directory).run({}, {}, refuses)
        assert not left.exists()
    assert (tmp_path / "there").exists()
    with pytest.raises(UserError, match="loss"):
        StageDirectory("s", tmp_path / "s").run({}, {}, writes)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"checkpoint", "started.json"}


def test_the_manifest_names_files_settings_and_packages(tmp_path):
    stage = StageDirectory("s", tmp_path / "s")
    stage.run({"data": "1"}, {"x": 1}, work([]))
    manifest = json.loads((stage.directory / "manifest.json").read_text())
    assert manifest["stage"] == "s"
    assert manifest["settings"] == {"x": 1}
    assert list(manifest["files"]) == ["a.txt"]
    assert "jax" in manifest["packages"]


def test_files_count_wherever_the_run_lies(tmp_path):
    stage = StageDirectory("a", tmp_path / "logs/a")
    stage.run({}, {}, lambda directory: (directory / "x").write_text("1"))
    assert list(stage.manifest["files"]) == ["x"]
    (stage.directory / "x").write_text("2")
    assert stage.run({}, {}, lambda directory: None)


def test_a_directory_of_the_users_is_never_emptied(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="name a new directory"):
        StageDirectory("s", tmp_path).run({}, {}, work([]))
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_stage_at_which_another_run_works_is_refused_and_stays_the_others(tmp_path):
    stage = StageDirectory("s", tmp_path / "s")

    def meanwhile(directory):
        (directory / "a.txt").write_text("mine")
        for inputs in ({"data": "1"}, {"data": "2"}):
            with pytest.raises(UserError, match=r"/s: in use by process \d+ on .*; wait until it has ended"):
                stage.run(inputs, {}, lambda _: pytest.fail("the other is at it"))
        (directory / "b.txt").write_text("mine too")

    assert stage.run({"data": "1"}, {}, meanwhile)
    assert sorted(path.name for path in stage.directory.iterdir()) == ["a.txt", "b.txt", "manifest.json"]
    assert sorted(stage.manifest["files"]) == ["a.txt", "b.txt"]
    assert not stage.run({"data": "1"}, {}, work([]))


def test_runs_that_share_a_stage_wait_for_each_other(tmp_path):
    begun, log = threading.Event(), []

    def slow(directory):
        begun.set()
        other.join(0.2)
        work(log)(directory)

    def second():
        begun.wait()
        log.append(run_in_store(StageDirectory("s", tmp_path / "two/s"), tmp_path / "store", {}, {}, work(log)))

    other = threading.Thread(target=second)
    other.start()
    assert run_in_store(StageDirectory("s", tmp_path / "one/s"), tmp_path / "store", {}, {}, slow)
    other.join()
    assert log == [["started.json"], False]  # the second has found it done
    assert (tmp_path / "two/s/a.txt").read_text() == "a"
    assert [path.name for path in (tmp_path / "store/s").iterdir()] == [(tmp_path / "one/s").resolve().name]


@pytest.mark.parametrize("content", ["", '{"schema": 1, "sta', "[]", None])
def test_damaged_bookkeeping_files_are_one_line_and_nothing_is_removed(tmp_path, content):
    stage = StageDirectory("s", tmp_path / "s")
    stage.run({"data": "1"}, {}, work([]))
    for name in ("manifest.json", "started.json"):
        damaged = stage.directory / name
        damaged.unlink(missing_ok=True)
        damaged.mkdir() if content is None else damaged.write_text(content)
        with pytest.raises(UserError, match=rf"{name}: .*; delete .*/s, or name another directory"):
            stage.run({"data": "2"}, {}, work([]))
        assert (stage.directory / "a.txt").exists()
        damaged.rmdir() if content is None else damaged.unlink()


def test_a_manifest_of_another_schema_is_done_again_and_one_of_another_program_is_left_alone(tmp_path):
    stage = StageDirectory("s", tmp_path / "s")
    stage.run({"data": "1"}, {}, work([]))
    for changes in ({"schema": 0}, {"files": None}, {"files": {"a.txt": 3}}):
        (stage.directory / "manifest.json").write_text(json.dumps(stage.manifest | changes))
        assert stage.run({"data": "1"}, {}, work([]))
    (stage.directory / "manifest.json").write_text('{"name": "an app", "icons": []}')
    with pytest.raises(UserError, match="files that are not this program's"):
        stage.run({"data": "1"}, {}, work([]))
    assert (stage.directory / "a.txt").exists()


@pytest.mark.parametrize("write", [write_text, lambda path, text: save_array(path, np.zeros(len(text)))])
def test_a_full_disk_is_one_line_and_the_stage_resumes(tmp_path, write):
    stage, log = StageDirectory("s", tmp_path / "s"), []

    def fills(directory):
        (directory / "half").write_text("h")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        try:
            write(directory / "rest", "r" * 5000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with pytest.raises(MachineError, match=r"s/rest: .*; free space and rerun the same command"):
        stage.run({}, {}, fills)
    assert stage.run({}, {}, work(log))
    assert log == [["half", "started.json"]]
