"""The contract of `Storage`: the same assertions for disk and for Cloud Storage."""

import errno
import hashlib
import os
import pickle
import time

import numpy as np
import pytest

from colm_jax.errors import MachineError, UserError
from colm_jax.storage import (
    GrowingFile,
    absolute,
    check_regular,
    check_writable,
    checksums,
    copy_file,
    entries,
    files,
    files_below,
    local_copies,
    local_copy,
    locked,
    make_directory,
    modified,
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
    storage_of,
    working_directory,
    write_text,
)
from colm_jax.storage.bucket import BUCKET
from colm_jax.storage.disk import DISK


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """Return an empty directory, on disk and in a bucket."""
    return tmp_path if request.param == "disk" else request.getfixturevalue("bucket")


def write(path, text):
    make_directory(path.parent)
    write_text(path, text)


def test_the_path_chooses_the_storage(tmp_path, bucket):
    assert storage_of(tmp_path) is DISK and storage_of(tmp_path / "gs:") is DISK
    assert storage_of(bucket / "a") is BUCKET
    assert DISK.has_links and not BUCKET.has_links
    assert set(vars(type(DISK))) == set(vars(type(BUCKET))) - {"_copies"}  # both have the same operations


def test_write_is_atomic(place):
    write_text(place / "a.txt", "before")
    with replacing(place / "a.txt") as beside:
        beside.write_text("part")
        assert (place / "a.txt").read_text() == "before"
    assert (place / "a.txt").read_text() == "part"
    with pytest.raises(KeyboardInterrupt), replacing(place / "a.txt") as beside:
        beside.write_text("more")
        raise KeyboardInterrupt
    assert (place / "a.txt").read_text() == "part"
    assert files_below(place) == ["a.txt"]


def test_full_disk_is_a_one_line_error_with_the_remedy(place):
    said = f"no space left on the disk; {storage_of(place).full_remedy} and rerun the same command"
    with pytest.raises(MachineError, match=said), replacing(place / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (place / "a").exists()


def test_written_content_is_read_back(place):
    path, text = place / "deep/er.txt", "a\u2028b\n" * 3
    write(path, text)
    data = text.encode()
    assert path.read_text(encoding="utf-8") == text
    assert size_of(path) == len(data)
    assert abs(modified(path) - time.time()) < 600
    assert read_range(path, 2, 7) == data[2:7]
    assert read_range(path, len(data) - 2, len(data) + 5) == data[-2:]
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()
    save_array(place / "a.npy", np.arange(5))
    np.testing.assert_array_equal(np.load(local_copy(place / "a.npy"), mmap_mode="r"), np.arange(5))
    write_text(place / "lines", '{"a": "\u2028"}\n{"a": 2}\n')
    assert read_lines(place / "lines") == [{"a": "\u2028"}, {"a": 2}]
    assert checksums(place, ["deep/er.txt", "none"]) == {"deep/er.txt": hashlib.sha256(data).hexdigest()}
    assert files_below(place) == ["a.npy", "deep/er.txt", "lines"]
    remove_tree(place)
    assert not place.exists() and files_below(place) == [] and entries(place) == []


def test_local_files_have_the_same_content(place):
    for name in ("a.txt", "b.json", "below/c.txt"):
        write(place / name, f"content of {name}")
    folder = local_copies(place, ["*.txt", "*.json"])
    assert [(folder / name).read_text() for name in ("a.txt", "b.json")] == ["content of a.txt", "content of b.json"]
    with storage_of(place).local_start(place / "a.txt", 7) as file:
        assert file.name == "a.txt" and file.stat().st_size == 16 and file.read_bytes()[:7] == b"content"
    storage_of(place).download(place / "a.txt", folder / "copy")
    assert (folder / "copy").read_text() == "content of a.txt"
    copy_file(place / "a.txt", place / "d.txt")
    assert (place / "d.txt").read_text() == "content of a.txt"


def test_missing_files_raise_file_not_found(place):
    for call in (size_of, modified, sha256_of, lambda path: read_range(path, 0, 1), lambda path: path.read_text()):
        with pytest.raises(FileNotFoundError):
            call(place / "none")
    with pytest.raises(UserError, match="file is missing"):
        read_json(place / "none.json")
    check_regular(place / "none")  # the reader reports it


def test_writable_check_leaves_no_files(place):
    check_writable(place / "out.json")
    assert files_below(place) == []


def test_growing_file_is_appended_to_when_reopened(place, monkeypatch):
    file = GrowingFile(place / "log", "first\n")
    file.write("second\n")
    file.flush()
    assert (place / "log").read_text() == "first\nsecond\n"
    file.write("third\n")
    file.close()
    file = GrowingFile(place / "log")
    monkeypatch.setattr(files, "_FLUSH_EVERY", -1)  # as if half a minute had passed
    file.write("fourth\n")
    assert (place / "log").read_text() == "first\nsecond\nthird\nfourth\n"
    file.close()
    file = GrowingFile(place / "log", "new\n")
    file.close()
    assert (place / "log").read_text() == "new\n"


def test_directory_is_replaced_when_complete(place):
    with replacing_directory(place / "team", last="b") as folder:
        for name in "abc":
            (folder / name).write_text(name)
        assert not (place / "team").exists()
    assert files_below(place / "team") == ["a", "b", "c"]
    with pytest.raises(KeyError), replacing_directory(place / "other", last="b") as folder:
        (folder / "a").write_text("a")
        raise KeyError
    assert not (place / "other").exists()


def test_working_directory_is_published_when_complete(place):
    sent = {}
    with working_directory(place / "logs") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/event").write_text("e")
        publish(folder, place / "logs", sent=sent)
        assert files_below(place / "logs") == ["sub/event"]
        with (folder / "sub/event").open("a") as file:
            file.write("f")
        os.utime(folder / "sub/event", (1, 1))  # a different modification time, even with a coarse clock
        publish(folder, place / "logs", sent=sent)
    assert (place / "logs/sub/event").read_text() == "ef"


def test_local_and_bucket_paths_have_the_same_methods(place):
    write_text(place / "a.txt", "one\r\ntwo\n")
    path = place / "a.txt"
    assert path.exists() and path.is_file() and not path.is_dir()
    assert place.is_dir() and not place.is_file()
    for none in ("a", "a.tx", "b.txt"):
        assert not (place / none).exists() and not (place / none).is_dir() and not (place / none).is_file()
    copy_file(path, place / "b.json")
    assert sorted(path.name for path in place.glob("*.txt")) == ["a.txt"]
    assert [path.name for path in entries(place)] == ["a.txt", "b.json"]
    with path.open("rb") as file:
        assert list(file) == [b"one\r\n", b"two\n"]
    (place / "b.json").unlink()
    (place / "b.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (place / "b.json").unlink()
    make_directory(place / "empty")
    (place / "empty").rmdir()
    assert entries(place) == [path] == [absolute(path)]
    assert path.parents[0] == place and absolute(place) in absolute(path).parents
    assert pickle.loads(pickle.dumps(path)).read_text() == path.read_text()


def test_locks_are_held_on_disk_only(place):
    with locked(place / "run/.lock", "RUN") as held:
        assert held == storage_of(place).has_links
    assert files_below(place) == []


def test_uploads_end_with_the_last_file(bucket, monkeypatch):
    """On disk the directory is renamed; in a bucket its last file marks it as complete."""
    sent, real = [], BUCKET.copy_from
    monkeypatch.setattr(type(BUCKET), "copy_from", lambda self, *args: sent.append(args[0].name) or real(*args))
    with replacing_directory(bucket / "team", last="b") as folder:
        for name in "abc":
            (folder / name).write_text(name)
    assert sent == ["a", "c", "b"]


def test_a_bucket_is_the_last_parent(bucket):
    assert [str(path) for path in (bucket / "a").parents] == [str(bucket), "gs://bucket"]
