"""What ends a command: one line and an exit status for the user's and the machine's faults, a traceback for a bug."""

import errno
import os
import subprocess
import sys
import threading
from functools import partial

import pytest

from colm_jax.cli.commands import config, score
from colm_jax.cli.main import main


def system(number, *names):
    """The error of the system call that gets these names."""
    first, *second = names or (None,)
    return OSError(number, os.strerror(number), first, None, *second)


@pytest.fixture
def ending(tmp_path, monkeypatch, capsys):
    """Exit status and standard error of a command that ends with an error."""

    def end(error):
        def work(flags):
            raise error

        monkeypatch.setattr(score, "run", work)
        status = main(["score", "--model", "m", f"--data={tmp_path / 'd.jsonl'}", "--out", str(tmp_path / "o")])
        return status, capsys.readouterr().err

    return end


@pytest.mark.parametrize("name", "ENOENT ENOTDIR EISDIR ELOOP ENAMETOOLONG EACCES EPERM EROFS".split())
def test_a_path_of_the_arguments_is_the_users_and_any_other_the_machines(ending, tmp_path, name):
    number = getattr(errno, name)
    for path in (tmp_path / "d.jsonl", tmp_path / "o/shard"):
        assert ending(system(number, str(path))) == (2, f"colm: {path}: {os.strerror(number)}\n")
    status, line = ending(system(number, "/usr/lib/o"))
    assert (status, line) == (1, f"colm: /usr/lib/o: {os.strerror(number)}; rerun the same command to resume\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (system(errno.EMFILE, "/a"), "/a: Too many open files; allow more (ulimit -n)"),
        (system(errno.ESTALE, "/a"), "/a: Stale file handle; rerun the same command to resume"),
        (system(errno.EIO, "/a", "/b"), "/a to /b: Input/output error; rerun the same command to resume"),
        (OSError("no errno\nof a library"), "no errno of a library; rerun the same command to resume"),
        (MemoryError(), "no memory left on this machine"),
        (system(errno.ENOSPC, "/a"), "no space left on the disk (/a); free space and rerun the same command"),
        (system(errno.EDQUOT, "/a"), "the disk quota is used up (/a); free space and rerun the same command"),
        (
            ValueError("Error writing file: [OS error 28: ENOSPC No space left on device]"),
            "no space left on the disk (Error writing file: [OS error 28: ENOSPC No space left on device]); free space "
            "and rerun the same command",
        ),
    ],
)
def test_the_machines_trouble_is_one_line_and_status_1(ending, error, said):
    assert ending(error) == (1, f"colm: {said}\n")


def test_a_bug_keeps_its_traceback_and_all_others_show_theirs_where_it_is_asked_for(ending, monkeypatch):
    for bug in (ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")):
        with pytest.raises(type(bug)):
            ending(bug)
    monkeypatch.setenv("COLM_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        ending(FileNotFoundError(errno.ENOENT, "No such file", "/a"))


def test_ctrl_c_ends_with_130(ending):
    assert ending(KeyboardInterrupt()) == (130, "colm: stopped; rerun the same command to resume\n")


@pytest.mark.parametrize(
    "output", ["print('x ' * 50_000)", "console.output.print('x ' * 50_000)", "{'x': 'x ' * 50_000}"]
)
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(output):
    program = f"""
import sys
from colm_jax.cli.commands import evaluate
from colm_jax.cli.main import main
from colm_jax import console
evaluate.run = lambda flags: {output}
sys.stdin.read()
sys.exit(main(["evaluate", "--task", "exact", "--predictions", "p", "--references", "r", "--out", sys.argv[1]]))
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", program, "never-written"], **pipes)
    process.stdout.close()
    process.stdout = None
    assert process.communicate(b"")[1] == b""
    assert process.returncode == 0


def test_a_failure_is_reported_although_the_reader_of_the_output_has_ended(tmp_path):
    program = """
import sys
from colm_jax.cli.commands import evaluate
from colm_jax.cli.main import main
def fail(flags):
    raise PermissionError(13, "Permission denied", "/data/model.safetensors")
evaluate.run = fail
sys.stdin.read()
sys.exit(main(["evaluate", "--task", "exact", "--predictions", "p", "--references", "r", "--out", sys.argv[1]]))
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "never-written")], **pipes)
    process.stdout.close()
    process.stdout = None
    assert b"/data/model.safetensors: Permission denied" in process.communicate(b"")[1]
    assert process.returncode == 1


def test_a_full_disk_behind_standard_output_is_one_line(tmp_path, monkeypatch, capfd):
    class Full:
        """A terminal or file that takes nothing."""

        def write(self, text):
            return len(text)

        def flush(self):
            raise system(errno.ENOSPC)

        def fileno(self):
            return number

    number = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(config, "run", lambda flags: print("x"))
    assert main(["config", "--base", "b"]) == 1
    assert "colm: no space left on the disk" in capfd.readouterr().err
    assert os.readlink(f"/proc/self/fd/{number}") == os.devnull
    os.close(number)


def test_a_full_disk_that_ends_a_thread_is_said_once(monkeypatch, capsys):
    def fill(number):
        raise system(number)

    def work(flags, number):
        thread = threading.Thread(target=fill, args=(number,))
        thread.start()
        thread.join()
        fill(number)

    monkeypatch.setattr(threading, "excepthook", lambda ended: print("in a thread", file=sys.stderr))
    for number, lines in ((errno.ENOSPC, 1), (errno.EIO, 2)):
        monkeypatch.setattr(config, "run", partial(work, number=number))
        assert main(["config", "--base", "b"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == lines
