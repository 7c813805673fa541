"""A lock admits one process; a second gets an error that names the holder, or waits."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from colm_jax.errors import UserError
from colm_jax.storage import locked

HOLDER = """
import sys, time
from pathlib import Path
from colm_jax.storage import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_gets_an_error_until_the_holder_is_killed(tmp_path):
    path = tmp_path / "run/.lock"
    other = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        said = rf"RUN: in use by process {other.pid} on .* since 2.*run/\.lock\)"
        with pytest.raises(UserError, match=said), locked(path, "RUN"):
            pass
        assert path.exists()
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    with locked(path, "RUN") as held:
        assert held


def test_lock_removes_only_the_files_it_created(tmp_path):
    with locked(tmp_path / "a/b/.lock", "a"):
        assert (tmp_path / "a/b").is_dir()
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    for folder, made in (("empty", []), ("full/deep", ["result"])):
        with pytest.raises(KeyError), locked(tmp_path / folder / ".lock", "it"):
            for name in made:
                (tmp_path / folder / name).touch()
            raise KeyError
        assert [path.name for path in (tmp_path / folder).iterdir()] == made


def test_lock_is_not_reentrant_and_is_free_after_release(tmp_path):
    with locked(tmp_path / "lock", "RUN"):
        said = f"RUN: in use by process {os.getpid()} "
        with pytest.raises(UserError, match=said), locked(tmp_path / "lock", "RUN"):
            pass
    with locked(tmp_path / "lock", "RUN"):
        pass


def test_waiting_holders_run_one_after_another(tmp_path):
    inside, most = [], []

    def work(number):
        for _ in range(20):
            with locked(tmp_path / "s/lock", "s", wait=True):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


def test_file_system_without_locks_is_an_error_only_for_shared_stages(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)  # which filelock calls
    with locked(tmp_path / "lock", "RUN") as held:
        assert not held
    with pytest.raises(UserError, match="STORE: its file system has no locks"), locked(tmp_path / "l", "STORE", True):
        pass


def test_unwritable_directory_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"RUN: cannot be written: .*file"), locked(tmp_path / "file/run/lock", "RUN"):
        pass


def test_creating_a_directory_is_not_retried_forever():
    with pytest.raises(UserError, match="RUN: /proc/run cannot be made"), locked(Path("/proc/run/lock"), "RUN"):
        pass


def test_directory_removed_while_it_is_created_is_created_again(tmp_path, monkeypatch):
    def removed_meanwhile(*_, **__):
        monkeypatch.undo()
        raise FileExistsError(errno.EEXIST, "File exists", str(tmp_path / "s"))

    monkeypatch.setattr(os, "mkdir", removed_meanwhile)
    with locked(tmp_path / "s/lock", "RUN") as held:
        assert held


def test_lock_with_an_unreadable_holder_is_still_held(tmp_path):
    with locked(tmp_path / "lock", "RUN"):
        (tmp_path / "lock").write_text("{")
        with pytest.raises(UserError, match="in use by another process;"), locked(tmp_path / "lock", "RUN"):
            pass


def test_storage_can_be_imported_without_fcntl():
    """As on Windows."""
    code = "import sys; sys.modules['fcntl'] = None; import colm_jax.storage"
    subprocess.run([sys.executable, "-c", code], check=True)
