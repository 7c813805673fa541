"""The same operations on disk and in a bucket."""

import errno
import hashlib
import os
import pickle
import subprocess

import numpy as np
import pytest

from colm_jax.errors import MachineError, UserError
from colm_jax.storage import (
    GrowingFile,
    check_writable,
    checksums,
    copy_file,
    entries,
    files,
    files_below,
    in_bucket,
    local_copies,
    local_copy,
    path_of,
    publish,
    read_json,
    read_lines,
    read_range,
    remove_tree,
    replacing,
    replacing_directory,
    save_array,
    sha256_of,
    size_of,
    working_directory,
    write_json,
    write_text,
)
from tests.storage.conftest import by_others


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """A directory here and there."""
    return tmp_path if request.param == "disk" else request.getfixturevalue("bucket")


def test_a_file_takes_its_place_whole_or_not_at_all(place):
    write_text(place / "a.txt", "before")
    with replacing(place / "a.txt") as beside:
        beside.write_text("half")
        assert (place / "a.txt").read_text() == "before"
    assert (place / "a.txt").read_text() == "half"
    with pytest.raises(KeyboardInterrupt), replacing(place / "a.txt") as beside:
        beside.write_text("more")
        raise KeyboardInterrupt
    assert (place / "a.txt").read_text() == "half"
    assert files_below(place) == ["a.txt"]


def test_what_is_written_is_read_back(place):
    text = "a\u2028b\n" * 3
    write_text(place / "deep/er.txt", text) if in_bucket(place) else write_text(place / "er.txt", text)
    path = place / ("deep/er.txt" if in_bucket(place) else "er.txt")
    assert path.read_text(encoding="utf-8") == text
    data = text.encode()
    assert size_of(path) == len(data)
    assert read_range(path, 2, 7) == data[2:7]
    assert read_range(path, len(data) - 2, len(data) + 5) == data[-2:]
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()
    save_array(place / "a.npy", np.arange(5))
    np.testing.assert_array_equal(np.load(local_copy(place / "a.npy"), mmap_mode="r"), np.arange(5))
    write_text(place / "lines", '{"a": "\u2028"}\n{"a": 2}\n')
    assert read_lines(place / "lines") == [{"a": "\u2028"}, {"a": 2}]
    assert set(checksums(place, ["a.npy", "none"])) == {"a.npy"}
    remove_tree(place)
    assert not place.exists()


def test_large_files_go_in_parts(bucket, tmp_path):
    data = np.random.default_rng(0).bytes(7 << 20)  # gcsfs sends more than 5 MiB by another kind of request
    (tmp_path / "large").write_bytes(data)
    copy_file(tmp_path / "large", bucket / "large")
    copy_file(bucket / "large", bucket / "again")
    assert local_copy(bucket / "again").read_bytes() == data
    assert sha256_of(bucket / "again") == hashlib.sha256(data).hexdigest()
    assert read_range(bucket / "large", 6 << 20, (6 << 20) + 9) == data[6 << 20 : (6 << 20) + 9]


def test_files_of_others_are_compared_by_what_the_bucket_knows_of_them(bucket, monkeypatch):
    write_text(bucket / "ours", "text")
    by_others(bucket / "theirs", b"text")  # without this package's note
    by_others(bucket / "other", b"texts")
    digest = hashlib.sha256(b"text").hexdigest()
    found = checksums(bucket, ["ours", "theirs", "other"])
    assert found["ours"] == digest and found["theirs"] not in (digest, found["other"])
    assert found["theirs"].startswith("md5 ")
    assert sha256_of(bucket / "theirs") == digest  # read for it
    write_text(bucket / "theirs", "text")
    assert checksums(bucket, ["theirs"]) == {"theirs": digest}


def test_a_copy_is_made_once_for_each_content(bucket, monkeypatch):
    write_text(bucket / "a.txt", "one")
    copy = local_copy(bucket / "a.txt")
    assert copy.read_text() == "one" and copy.name == "a.txt"
    with monkeypatch.context() as patched:
        patched.setattr(files.bucket, "download", lambda *_: pytest.fail("it is there"))
        assert local_copy(bucket / "a.txt") == copy
    write_text(bucket / "a.txt", "two")
    assert local_copy(bucket / "a.txt").read_text() == "two"
    assert not copy.exists()
    write_json(bucket / "b.json", {})
    write_text(bucket / "below/c.txt", "c")
    assert files_below(local_copies(bucket, ["*.txt", "*.json"])) == ["a.txt", "b.json"]
    with pytest.raises(FileNotFoundError):
        local_copy(bucket / "none")


def test_what_a_killed_process_left_is_removed(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("COLM_CACHE", str(tmp_path))
    host = files.socket.gethostname()
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, alive, elsewhere = f"part-{host}-{ended.pid}-a", f"part-{host}-{os.getpid()}-b", f"part-other{host}-1-c"
    for name in (dead, alive, elsewhere):
        (tmp_path / name).mkdir()
    files._remove_dead_parts.cache_clear()
    write_text(bucket / "a.txt", "text")
    assert {path.name for path in tmp_path.iterdir()} == {alive, elsewhere}


def test_a_copy_that_does_not_fit_is_refused(bucket, monkeypatch):
    write_text(bucket / "a.txt", "one")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2}))
    with pytest.raises(MachineError, match=r"a copy takes 0\.0 GiB.*COLM_CACHE"):
        local_copy(bucket / "a.txt")


def test_copies_from_anywhere_to_anywhere(bucket, tmp_path):
    write_text(tmp_path / "a", "text")
    copy_file(tmp_path / "a", bucket / "b")
    copy_file(bucket / "b", bucket / "c")
    copy_file(bucket / "c", tmp_path / "d")
    copy_file(tmp_path / "d", tmp_path / "e")
    assert (tmp_path / "e").read_text() == "text"


def test_a_file_grows_and_goes_on(place, monkeypatch):
    file = GrowingFile(place / "log", "first\n")
    file.write("second\n")
    file.keep()
    assert (place / "log").read_text() == "first\nsecond\n"
    file.write("third\n")
    file.close()
    file = GrowingFile(place / "log")
    monkeypatch.setattr(files, "_KEEP_EVERY", -1)  # as if it were long ago
    file.write("fourth\n")
    assert (place / "log").read_text() == "first\nsecond\nthird\nfourth\n"
    file.close()
    file = GrowingFile(place / "log", "anew\n")
    file.close()
    assert (place / "log").read_text() == "anew\n"


def test_a_directory_is_filled_on_disk_and_its_last_file_comes_last(place, monkeypatch):
    sent, real = [], files.copy_file
    monkeypatch.setattr(files, "copy_file", lambda a, b: sent.append(b.name) or real(a, b))
    with replacing_directory(place / "team", last="b") as folder:
        for name in "abc":
            (folder / name).write_text(name)
        assert not (place / "team").exists()
    assert files_below(place / "team") == ["a", "b", "c"]
    assert sent == (["a", "c", "b"] if in_bucket(place) else [])
    with working_directory(place / "logs") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/event").write_text("e")
        publish(folder, place / "logs")
    assert files_below(place / "logs") == ["sub/event"]


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
def test_addresses_that_cannot_be_used(emulator, address, said):
    with pytest.raises(UserError, match=said):
        path_of(address)


class Refusing:
    """gcsfs, where it does not answer as it should."""

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
        (lambda: http_error(401, "Anonymous caller"), MachineError, "gcloud auth application-default login"),
        (lambda: OSError("Forbidden: b/x\nno storage.objects.list"), UserError, "Storage Object User"),
        (
            lambda: http_error(503, "Backend Error"),
            MachineError,
            "503; rerun the same command to resume",
        ),
        (lambda: ConnectionError("unreachable"), MachineError, "unreachable"),
    ],
)
def test_what_cloud_storage_refuses_is_one_line(bucket, monkeypatch, error, kind, said):
    refused = error()
    monkeypatch.setattr(files.bucket, "_objects", lambda: Refusing(refused))
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


def test_a_path_in_a_bucket_answers_as_one_on_disk_does(place):
    write_text(place / "a.txt", "one\r\ntwo\n")
    assert (place / "a.txt").exists() and (place / "a.txt").is_file() and not (place / "a.txt").is_dir()
    assert place.is_dir() and not place.is_file()
    for none in ("a", "a.tx", "b.txt"):
        assert not (place / none).exists() and not (place / none).is_dir() and not (place / none).is_file()
    copy_file(place / "a.txt", place / "b.json")
    assert sorted(path.name for path in place.glob("*.txt")) == ["a.txt"]
    assert [path.name for path in entries(place)] == ["a.txt", "b.json"]
    assert entries(place / "none") == []
    with (place / "a.txt").open("rb") as file:
        assert list(file) == [b"one\r\n", b"two\n"]
    (place / "b.json").unlink()
    (place / "b.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (place / "b.json").unlink()
    with pytest.raises(UserError, match="file is missing"):
        read_json(place / "none.json")
    assert pickle.loads(pickle.dumps(place / "a.txt")).read_text() == (place / "a.txt").read_text()


def test_no_room_is_said_as_such(bucket, monkeypatch):
    write_text(bucket / "a", "text")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(files.bucket, "_objects", lambda: Refusing(full))
    with pytest.raises(MachineError, match="no room for a copy; name a folder on a larger disk by COLM_CACHE"):
        local_copy(bucket / "a")


def test_without_gcsfs_the_remedy_is_said(monkeypatch):
    files.bucket._objects.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install 'colm-jax\[gcs\]'"):
        path_of("gs://third-bucket/a")
