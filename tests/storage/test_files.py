"""Buckets: local copies, addresses, large objects, errors of Cloud Storage. test_contract has what disks share."""

import errno
import hashlib
import os
import subprocess

import numpy as np
import pytest

from colm_jax.errors import MachineError, UserError
from colm_jax.storage import bucket as gcs
from colm_jax.storage import (
    cache,
    check_writable,
    checksums,
    copy_file,
    files_below,
    local_copies,
    local_copy,
    path_of,
    read_json,
    read_range,
    remove_tree,
    sha256_of,
    write_json,
    write_text,
)
from tests.storage.conftest import by_others


def test_large_files_are_uploaded_in_parts(bucket, tmp_path):
    data = np.random.default_rng(0).bytes(7 << 20)  # gcsfs uploads more than 5 MiB by another kind of request
    (tmp_path / "large").write_bytes(data)
    copy_file(tmp_path / "large", bucket / "large")
    copy_file(bucket / "large", bucket / "again")
    assert local_copy(bucket / "again").read_bytes() == data
    assert sha256_of(bucket / "again") == hashlib.sha256(data).hexdigest()
    assert read_range(bucket / "large", 6 << 20, (6 << 20) + 9) == data[6 << 20 : (6 << 20) + 9]


def test_objects_of_other_programs_are_compared_by_cloud_storages_hash(bucket, monkeypatch):
    write_text(bucket / "ours", "text")
    by_others(bucket / "theirs", b"text")  # without this package's metadata
    by_others(bucket / "other", b"texts")
    digest = hashlib.sha256(b"text").hexdigest()
    found = checksums(bucket, ["ours", "theirs", "other"])
    assert found["ours"] == digest and found["theirs"] not in (digest, found["other"])
    assert found["theirs"].startswith("md5 ")
    assert sha256_of(bucket / "theirs") == digest  # by reading the file
    write_text(bucket / "theirs", "text")
    assert checksums(bucket, ["theirs"]) == {"theirs": digest}


def test_local_copy_is_made_once_per_content(bucket, monkeypatch):
    write_text(bucket / "a.txt", "one")
    copy = local_copy(bucket / "a.txt")
    assert copy.read_text() == "one" and copy.name == "a.txt"
    with monkeypatch.context() as patched:
        patched.setattr(type(gcs.BUCKET), "download", lambda *_: pytest.fail("it is there"))
        assert local_copy(bucket / "a.txt") == copy
    write_text(bucket / "a.txt", "two")
    assert local_copy(bucket / "a.txt").read_text() == "two"
    assert not copy.exists()
    write_json(bucket / "b.json", {})
    write_text(bucket / "below/c.txt", "c")
    assert files_below(local_copies(bucket, ["*.txt", "*.json"])) == ["a.txt", "b.json"]
    with pytest.raises(FileNotFoundError):
        local_copy(bucket / "none")


def test_temporary_directories_of_killed_processes_are_removed(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("COLM_CACHE", str(tmp_path))
    host = cache.socket.gethostname()
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, alive, elsewhere = f"part-{host}-{ended.pid}-a", f"part-{host}-{os.getpid()}-b", f"part-other{host}-1-c"
    for name in (dead, alive, elsewhere):
        (tmp_path / name).mkdir()
    cache._remove_dead_parts.cache_clear()
    write_text(bucket / "a.txt", "text")
    assert {path.name for path in tmp_path.iterdir()} == {alive, elsewhere}


def test_copy_larger_than_the_free_space_is_an_error(bucket, monkeypatch):
    write_text(bucket / "a.txt", "one")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2}))
    with pytest.raises(MachineError, match=r"a copy takes 0\.0 GiB.*COLM_CACHE"):
        local_copy(bucket / "a.txt")


def test_files_are_copied_between_disk_and_bucket_in_all_directions(bucket, tmp_path):
    write_text(tmp_path / "a", "text")
    copy_file(tmp_path / "a", bucket / "b")
    copy_file(bucket / "b", bucket / "c")
    copy_file(bucket / "c", tmp_path / "d")
    copy_file(tmp_path / "d", tmp_path / "e")
    assert (tmp_path / "e").read_text() == "text"


@pytest.mark.parametrize(
    "address, said",
    [
        ("s3://bucket/a", "only gs://BUCKET/NAME"),
        ("gs://", "no address in a bucket"),
        ("gs://bucket//a", "no address in a bucket"),
        ("gs://bucket/../a", "no address in a bucket"),
        ("gs://bucket/run[1]", "rename it"),
        ("gs://bucket/a?b", "rename it"),
        ("gs://none/a", "gs://none: there is no such bucket"),
    ],
)
def test_invalid_addresses_are_errors(emulator, address, said):
    with pytest.raises(UserError, match=said):
        path_of(address)


class Refusing:
    """A gcsfs whose every call fails."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        def refuse(*_, **__):
            raise self.error

        return refuse


def http_error(code, message):
    from gcsfs.retry import HttpError

    return HttpError({"code": code, "message": message})


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (lambda: http_error(401, "Anonymous caller"), MachineError, "authentication failed"),
        (lambda: OSError("Forbidden: b/x\nno storage.objects.list"), UserError, "Storage Object User"),
        (
            lambda: http_error(503, "Backend Error"),
            MachineError,
            "503; rerun the same command to resume",
        ),
        (lambda: ConnectionError("unreachable"), MachineError, "unreachable"),
    ],
)
def test_errors_of_cloud_storage_are_one_line(bucket, monkeypatch, error, kind, said):
    refused = error()
    monkeypatch.setattr(gcs, "_objects", lambda: Refusing(refused))
    with pytest.raises(kind, match=said):
        write_text(bucket / "a", "text")
    with pytest.raises(kind, match=said):
        path_of("gs://another-bucket/a")
    for read in (
        lambda path: path.exists(),
        lambda path: path.is_dir(),
        lambda path: path.read_text(),
        lambda path: path.open("rb"),
        lambda path: path.unlink(missing_ok=True),
        lambda path: list(path.glob("*")),
        lambda path: list(path.iterdir()),
        read_json,
        local_copy,
        remove_tree,
        check_writable,
    ):
        with pytest.raises(kind, match=said):
            read(bucket / "a")


def test_full_disk_during_a_copy_is_an_error_that_names_it(bucket, monkeypatch):
    write_text(bucket / "a", "text")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(gcs, "_objects", lambda: Refusing(full))
    with pytest.raises(MachineError, match="no room for a copy; name a folder on a larger disk by COLM_CACHE"):
        local_copy(bucket / "a")


def test_missing_gcsfs_is_an_error_with_the_remedy(monkeypatch):
    gcs._objects.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install 'colm-jax\[gcs\]'"):
        path_of("gs://third-bucket/a")
