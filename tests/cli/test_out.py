"""--out is checked before anything is read: what stands there stays, and nobody else works there."""

import argparse
import importlib
import os
import socket
import stat

import pytest

from colm_jax.cli import out
from colm_jax.cli.commands import SUMMARIES
from colm_jax.cli.main import main
from colm_jax.cli.parser import parser_of
from colm_jax.errors import UserError
from colm_jax.storage import path_of, write_text

COMMANDS = {
    "demo": [],
    "run": ["--base", "b", "--expert", "e", "--data", "d"],
    "sweep": [],
    "convert": ["--format", "gsm8k", "--data", "d"],
    "score": ["--model", "m", "--data", "d"],
    "train": ["--base", "b", "--expert", "e", "--data", "d"],
    "refresh": ["--run", "r", "--expert", "e", "--data", "d", "--dev", "d"],
    "calibrate": ["--base", "b", "--data", "d"],
    "generate": ["--base", "b", "--prompts", "p"],
    "evaluate": ["--task", "exact", "--predictions", "p", "--references", "r"],
    "judge": ["prompts", "--judge", "mt_bench", "--questions", "q"],
    "export": ["--run", "r"],
}


def out_flags(parser, name):
    """Of every command with --out, its metavar."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from out_flags(sub, name)
        elif "--out" in action.option_strings:
            yield name, action.metavar


def replace_work(monkeypatch, command, work):
    monkeypatch.setattr(importlib.import_module(f"colm_jax.cli.commands.{command}"), "run", work)


def refused(capsys, *arguments):
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line


def facts(folder):
    return {path.name: (os.lstat(path).st_mode, os.lstat(path).st_ino) for path in folder.iterdir()}


def test_every_command_with_out_is_known_and_says_whether_it_is_a_file():
    found = {found for name in SUMMARIES for found in out_flags(parser_of(name), name)}
    assert found == {(name, "FILE" if name in out.FILES else "DIR") for name in COMMANDS}


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch):
    for name in COMMANDS:
        replace_work(monkeypatch, name, lambda flags: pytest.fail("--out is checked first"))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_neither_file_nor_directory_stays_as_it_is(tmp_path, capsys, command):
    os.mkfifo(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    folder = os.open(tmp_path, os.O_RDONLY)
    listening.bind(f"/proc/self/fd/{folder}/socket")  # the address may have 108 bytes
    os.close(folder)
    (tmp_path / "link").symlink_to("pipe")
    before = facts(tmp_path)
    wanted = "file" if command in out.FILES else "directory"
    for name, kind in (("pipe", "a pipe"), ("socket", "a socket"), ("link", "a pipe")):
        line = refused(capsys, command, *COMMANDS[command], "--out", tmp_path / name)
        assert line.startswith(f"colm: --out {tmp_path / name}: is {kind}, not a {wanted}; name another {wanted}")
    listening.close()
    assert facts(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_places_where_nothing_can_be_written_are_one_line(tmp_path, capsys, command):
    is_file = command in out.FILES
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("none")
    (tmp_path / "round").symlink_to("round")
    wrong = {
        tmp_path / "file/below/it": f"{tmp_path / 'file'} is a file, not a directory",
        tmp_path / ("folder" if is_file else "file"): "is a directory" if is_file else "is a file, not a directory",
        tmp_path / "dangling": f"is a link to {tmp_path / 'none'}, which is missing",
        tmp_path / "round": "Too many levels of symbolic links",
        tmp_path / "new" / ("n" * 256): "a name of 256 bytes is too long, the file system takes 255",
        tmp_path / ("n" * 5000): "File name too long",
        tmp_path / "nul\0": "is no path",
        tmp_path / "not-utf8-\udcff": "is no path",
        "": "--out '': results are written to a",
        "-": "--out -: results are written to a",
    }
    for path, said in wrong.items():
        assert said in refused(capsys, command, *COMMANDS[command], "--out", path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "folder", "round"]
    assert (tmp_path / "file").read_text() == "mine" and not list((tmp_path / "folder").iterdir())


def test_a_name_leaves_room_for_what_lies_beside_it(tmp_path):
    assert out.check_out(str(tmp_path / ("n" * 244)), is_file=True)
    with pytest.raises(UserError, match="a name of 256 bytes"):
        out.check_out(str(tmp_path / ("n" * 245)), is_file=True)
    assert out.check_out(str(tmp_path / ("n" * 255)), is_file=False)
    os.mkfifo(tmp_path / "a.jsonl.part")
    with pytest.raises(UserError, match=r"a\.jsonl\.part, which is needed meanwhile, is a pipe"):
        out.check_out(str(tmp_path / "a.jsonl"), is_file=True)


def test_devices_and_what_the_system_keeps_are_no_places_for_files(tmp_path, monkeypatch):
    for path in ("/dev/stdout", "/dev/fd/1", "/dev/new.jsonl", "/proc/self/fd/1", "/sys/new"):
        with pytest.raises(UserError, match=f"--out {path}: is not a place for files"):
            out.check_out(path, is_file=True)
    (tmp_path / "link").symlink_to("/dev/stdout")
    with pytest.raises(UserError, match="is not a place for files"):
        out.check_out(str(tmp_path / "link"), is_file=True)
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        monkeypatch.setattr(out, "_mode", lambda path, kind=kind: kind if path.name == "disk" else stat.S_IFDIR)
        for is_file in (True, False):
            with pytest.raises(UserError, match="is a device, not a"):
                out.check_out(str(tmp_path / "disk"), is_file)


def test_what_this_user_may_not_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(out.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} may not be written by this user; name another directory"):
        out.check_out(str(tmp_path / "new/run"), is_file=False)


def test_a_link_to_a_file_stays_and_its_target_is_written(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.json").write_text("before")
    (tmp_path / "a.json").symlink_to("data/a.json")
    replace_work(monkeypatch, "evaluate", lambda flags: write_text(path_of(flags.out), "after"))
    assert main(["evaluate", *COMMANDS["evaluate"], "--out", str(tmp_path / "a.json")]) == 0
    assert (tmp_path / "a.json").is_symlink() and (tmp_path / "data/a.json").read_text() == "after"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.json"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_command_is_refused_at_once_and_the_first_leaves_no_lock(tmp_path, capsys, monkeypatch, command):
    place = tmp_path / "new/out"
    arguments = [command, *COMMANDS[command], "--out", str(place)]

    def work(flags):
        replace_work(monkeypatch, command, lambda flags: pytest.fail("another command works there"))
        assert f"--out {place}: in use by process {os.getpid()} on " in refused(capsys, *arguments)

    replace_work(monkeypatch, command, work)
    assert main(arguments) == 0
    assert not (tmp_path / "new").exists()


def test_a_lock_file_of_another_program_beside_the_output_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "poetry.lock").write_text("packages")
    replace_work(monkeypatch, "evaluate", lambda flags: None)
    assert main(["evaluate", *COMMANDS["evaluate"], "--out", str(tmp_path / "poetry")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["poetry.lock"]
    assert (tmp_path / "poetry.lock").read_text() == "packages"


def test_jobs_of_one_sweep_share_its_directory(tmp_path, monkeypatch):
    seen, arguments = [], ["sweep", "--out", str(tmp_path / "s"), "--commands"]

    def sweep(flags):
        seen.append(flags.trial)
        if flags.trial is not None:
            assert main(arguments) == 0

    replace_work(monkeypatch, "sweep", sweep)
    assert main(["sweep", "--out", str(tmp_path / "s"), "--trial", "a"]) == 0
    assert seen == ["a", None]


def test_a_store_is_a_directory(tmp_path, capsys):
    (tmp_path / "store").touch()
    line = refused(capsys, "run", *COMMANDS["run"], "--out", tmp_path / "o", "--store", tmp_path / "store")
    assert f"--store {tmp_path / 'store'}: is a file, not a directory" in line
