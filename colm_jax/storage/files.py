"""Read and write files on disk or, as gs://BUCKET/NAME, in Cloud Storage; each appears when it is complete."""

import json
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager as Context
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax.errors import UserError
from colm_jax.storage.bucket import BUCKET, SCHEME, BucketPath, open_address
from colm_jax.storage.disk import DISK, full_disk_is_one_line
from colm_jax.storage.protocol import Storage

_FLUSH_EVERY = 30  # seconds: how much of a file that grows is lost, at most, when a machine is preempted


def path_of(path: str | Path) -> Path:
    """Return a path on disk, or in a bucket.

    Raises:
      UserError: an empty or invalid name; an address of another kind; a bucket that cannot be used.
      MachineError: Cloud Storage cannot be reached.
    """
    if isinstance(path, BucketPath):
        return path
    text = str(path)
    try:
        named = text.encode("utf-8")
    except UnicodeEncodeError:
        named = b""
    if not named or b"\0" in named:
        raise UserError(f"{text!r}: is no path; write the name of a file or directory, in UTF-8")
    if in_bucket(text):
        return open_address(text)
    if "://" in text:
        raise UserError(f"{text}: is no path; of addresses only gs://BUCKET/NAME is read and written")
    return Path(path)


def in_bucket(path: str | Path) -> bool:
    """Return whether this is an address in a bucket."""
    return str(path).startswith(SCHEME)


def storage_of(path: Path) -> Storage:
    """Return the implementation for a path."""
    return BUCKET if in_bucket(path) else DISK


def absolute(path: Path) -> Path:
    """Return the path from the root, with symbolic links resolved."""
    return path.resolve()


def locked(path: Path, subject: str, wait: bool = False) -> Context[bool]:
    """Hold a lock within the block (see `locks.locked`). A bucket has no locks."""
    return storage_of(path).locked(path, subject, wait)


# Reading.


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Return bytes start..stop of a file, fewer at its end. Threads may call it at the same time."""
    return storage_of(path).read_range(path, start, stop)


def load_array(path: Path) -> np.ndarray:
    """Return the array of a .npy file.

    Raises:
      UserError: it is missing or damaged.
    """
    with damaged_is_one_line(path):
        return np.load(local_copy(path))


@contextmanager
def damaged_is_one_line(path: Path) -> Iterator[None]:
    """Turn NumPy's errors about an incomplete array file of this program into one line.

    Raises:
      UserError: naming the file.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: damaged ({said}); delete it and rerun the same command") from None


def check_regular(path: Path) -> None:
    """Raise UserError for anything but a file, such as a pipe, which can be read only once. A missing file passes."""
    storage_of(path).check_regular(path)


def size_of(path: Path) -> int:
    """Return the size of a file, bytes."""
    return storage_of(path).size(path)


def modified(path: Path) -> float:
    """Return when a file was last written, seconds since 1970."""
    return storage_of(path).modified(path)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; the Hub's cache, and objects of this package, have it stored."""
    return storage_of(path).sha256(path)


def entries(directory: Path) -> list[Path]:
    """Return the entries of a directory, sorted; none where it does not exist."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def files_below(directory: Path) -> list[str]:
    """Return every file below a directory by its relative name, sorted."""
    return storage_of(directory).files_below(directory)


def checksums(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Return a hash of the content of each of these files below a directory, without those that do not exist.

    On disk, and for objects that this package wrote, it is the SHA-256. For other objects it is the hash that Cloud
    Storage has, so that no weights are read.
    """
    return storage_of(directory).checksums(directory, names)


# Copies on this machine.


def local_copy(path: Path) -> Path:
    """Return the file on disk: itself, or a copy of an object.

    Raises:
      FileNotFoundError: it does not exist.
      MachineError: not enough space for the copy.
    """
    return storage_of(path).local_copy(path)


def local_copies(directory: Path, patterns: Iterable[str]) -> Path:
    """Return a folder on disk with the files of a directory that match these patterns: itself, or copies.

    Raises:
      MachineError: not enough space for the copies.
    """
    return storage_of(directory).local_copies(directory, patterns)


# Writing.


def check_writable(path: Path) -> None:
    """Raise UserError where this account may not write to a bucket, before any work is done."""
    storage_of(path).check_writable(path)


def replacing(path: Path) -> Context[Path]:
    """Yield a file on disk to write, which replaces `path` when the block ends without an error."""
    return storage_of(path).replacing(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.save(file, array)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file between any two places."""
    storage_of(target).copy_from(source, storage_of(source), target)


def make_directory(path: Path) -> None:
    """Create a directory and its parents; a bucket needs none."""
    path.mkdir(parents=True, exist_ok=True)


def remove_tree(directory: Path) -> None:
    """Remove a directory and everything in it."""
    storage_of(directory).remove_tree(directory)


def working_directory(directory: Path) -> Context[Path]:
    """Yield a folder on disk for libraries that write only there: the directory itself, or one to `publish`."""
    return storage_of(directory).working_directory(directory)


def publish(folder: Path, directory: Path, last: str | None = None, sent: dict[str, float] | None = None) -> None:
    """Upload the files of a working directory.

    Args:
      folder: the working directory.
      directory: what it stands for; on disk it is the same, and nothing is to be done.
      last: a file to upload after all others.
      sent: when each uploaded file was written; updated. Unchanged files are not uploaded again.
    """
    storage_of(directory).publish(folder, directory, last, {} if sent is None else sent)


def replacing_directory(directory: Path, last: str) -> Context[Path]:
    """Yield an empty folder on disk, which replaces an empty or missing directory when the block ends.

    On disk that is atomic, in a bucket file by file, `last` after all others.
    """
    return storage_of(directory).replacing_directory(directory, last)


class GrowingFile:
    """A text file that grows by lines.

    On disk each write is visible immediately. In a bucket, mounted or not, it is at `flush`, which also runs every
    half minute.
    """

    def __init__(self, path: Path, begin: str | None = None):
        """Open the file with `begin` in place of its content; None keeps that."""
        self._path, self._storage, self._open = path, storage_of(path), ExitStack()
        self._local = self._open.enter_context(self._storage.working_directory(path.parent)) / path.name
        with full_disk_is_one_line(self._local, self._storage.full_remedy):
            if begin is not None:
                write_text(self._local, begin)
            elif self._local != path and path.exists():
                self._storage.download(path, self._local)
            self._file = self._local.open("a", encoding="utf-8")
        self._changed = begin is not None
        self.flush()

    def write(self, text: str) -> None:
        """Append text."""
        with full_disk_is_one_line(self._local, self._storage.full_remedy):
            self._file.write(text)
            self._file.flush()
        self._changed = True
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Flush the file to durable storage."""
        with full_disk_is_one_line(self._local, self._storage.full_remedy):
            self._file.close()  # a mounted bucket uploads a file when it is closed
            if self._local != self._path and self._changed:
                copy_file(self._local, self._path)
            self._file = self._local.open("a", encoding="utf-8")
        self._flushed, self._changed = time.monotonic(), False

    def close(self) -> None:
        """Flush and close the file."""
        with self._open:
            self.flush()
            self._file.close()
