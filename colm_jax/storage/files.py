"""What every stage does with files: each is written beside its place and then put there, so that no half is ever seen.

A path is on disk or, as gs://BUCKET/NAME, in a bucket of Cloud Storage. What only a file on disk can serve (memory
maps, ArrayRecord, tokenizers) goes through a copy in a folder of this machine: COLM_CACHE, or ~/.cache/colm_jax.
"""

import fnmatch
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax.errors import MachineError, UserError, no_room
from colm_jax.storage import bucket
from colm_jax.storage.locks import locked

_PART = "part-"  # begins the names of folders whose content is on its way
_CACHED = "name a folder on a larger disk by COLM_CACHE"
_AT_ONCE = 8  # objects that are copied side by side
_KEEP_EVERY = 30  # seconds: how much of a file that grows is lost, at most, where a machine is taken away


def path_of(path: str | Path) -> Path:
    """A path on disk, or in a bucket.

    Raises:
      UserError: no name, or one that no file can have; an address of another kind; a bucket that cannot be used.
      MachineError: Cloud Storage cannot be reached.
    """
    if isinstance(path, bucket.BucketPath):
        return path
    text = str(path)
    try:
        named = text.encode("utf-8")
    except UnicodeEncodeError:
        named = b""
    if not named or b"\0" in named:
        raise UserError(f"{text!r}: is no path; write the name of a file or directory, in UTF-8")
    if in_bucket(text):
        return bucket.open_address(text)
    if "://" in text:
        raise UserError(f"{text}: is no path; of addresses only gs://BUCKET/NAME is read and written")
    return Path(path)


def in_bucket(path: str | Path) -> bool:
    """Whether it is the address of something in a bucket."""
    return str(path).startswith(bucket.SCHEME)


def absolute(path: Path) -> Path:
    """The path from the root, links followed."""
    return path if in_bucket(path) else path.resolve()


# Reading.


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Bytes start..stop of a file, fewer where it ends before. Threads may ask at once."""
    if in_bucket(path):
        return bucket.read(path, start, stop)
    with path.open("rb") as opened:
        return os.pread(opened.fileno(), stop - start, start)


def load_array(path: Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
      UserError: it is missing or damaged.
    """
    with damaged_is_one_line(path):
        return np.load(local_copy(path))


@contextmanager
def damaged_is_one_line(path: Path) -> Iterator[None]:
    """Makes one line of what NumPy says of an array file of this program that is not whole.

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


def size_of(path: Path) -> int:
    """Of a file, in bytes."""
    return bucket.facts(path).size if in_bucket(path) else path.stat().st_size


def modified(path: Path) -> float:
    """When a file was last written, in seconds since 1970."""
    return bucket.facts(path).modified if in_bucket(path) else path.stat().st_mtime


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of a large file in the Hub's cache it is the name that the link points to."""
    if in_bucket(path):
        known = bucket.facts(path).sha256
        if known is not None:
            return known
    else:
        blob = path.resolve()
        if blob.parent.name == "blobs" and len(blob.name) == 64:
            return blob.name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def entries(directory: Path) -> list[Path]:
    """What is in a directory, in order; nothing where there is none."""
    if in_bucket(directory):
        return list(directory.iterdir())
    return sorted(directory.iterdir()) if directory.exists() else []


def files_below(directory: Path) -> list[str]:
    """Every file below a directory, by its name relative to it, in order."""
    if in_bucket(directory):
        return list(bucket.facts_below(directory))
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def checksums(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Of these files below a directory, a hash of each one's content; one that is not there has none.

    It is the SHA-256 on disk and of what this package wrote into a bucket. Of other objects it is the hash that Cloud
    Storage keeps, so that no weights have to be read for it.
    """
    if in_bucket(directory):
        found = bucket.facts_below(directory)
        return {name: found[name].checksum for name in names if name in found}
    return {name: sha256_of(directory / name) for name in names if (directory / name).exists()}


# Copies on this machine.


def local_copy(path: Path) -> Path:
    """A file as one on disk: itself, or a copy of what lies in a bucket.

    Raises:
      FileNotFoundError: it is not there.
      MachineError: no room for the copy.
    """
    return _copies(path.parent, {path.name: bucket.facts(path)}) / path.name if in_bucket(path) else path


def local_copies(directory: Path, patterns: Iterable[str]) -> Path:
    """A folder on disk with a directory's files of these names (as in "*.json"): itself, or copies.

    Raises:
      MachineError: no room for the copies.
    """
    if not in_bucket(directory):
        return directory
    names = re.compile("|".join(map(fnmatch.translate, patterns)))
    found = bucket.facts_below(directory)
    return _copies(directory, {name: found[name] for name in found if "/" not in name and names.fullmatch(name)})


def _copies(directory: Path, found: dict[str, bucket.Facts]) -> Path:
    """A folder with copies of a directory's objects, made once for each content of theirs; earlier ones go."""
    address, content = (
        hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        for parts in ([str(directory), *found], [facts.generation for facts in found.values()])
    )
    folder = _cache() / address / content
    # Of several processes of a host one copies for all.
    with locked(_cache() / f"{address}.lock", f"COLM_CACHE {_cache()}", wait=True):
        if folder.is_dir():
            return folder
        needed, free = sum(facts.size for facts in found.values()), shutil.disk_usage(_cache()).free
        if needed > free:
            raise MachineError(
                f"{directory}: a copy takes {needed / 2**30:.1f} GiB, and {_cache()} has {free / 2**30:.1f} left; name "
                "a folder on a larger disk by COLM_CACHE"
            )
        with _part() as part, ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: bucket.download(directory / name, part / name), found))
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir()
            part.rename(folder)
    return folder


def _cache() -> Path:
    """The folder of copies, made."""
    given = os.environ.get("COLM_CACHE")
    folder = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "colm_jax"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _part() -> Iterator[Path]:
    """An empty folder there, for what is on its way."""
    _remove_dead_parts()
    prefix = f"{_PART}{socket.gethostname()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=_cache(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@cache
def _remove_dead_parts() -> None:
    """Removes what processes of this machine have left there when they were killed."""
    for folder in _cache().glob(f"{_PART}{socket.gethostname()}-*"):
        number = folder.name.removeprefix(f"{_PART}{socket.gethostname()}-").split("-")[0]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# Writing.


def check_writable(path: Path) -> None:
    """Raises UserError where nothing may be written to a bucket; better now than when the work is done."""
    if in_bucket(path):
        probe = path.with_name(path.name + ".tmp")
        write_text(probe, "")
        probe.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file on disk to be written, which takes the place of `path` when the block ends; where it raises, nothing is
    changed."""
    if in_bucket(path):
        with _part() as part, _saying_where(part, _CACHED):
            beside = part / path.name
            yield beside
            bucket.upload(beside, path, sha256_of(beside))
        return
    beside = path.with_name(path.name + ".tmp")
    with _saying_where(path):
        try:
            yield beside
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


@contextmanager
def _saying_where(path: Path, remedy: str = "free space") -> Iterator[None]:
    """Makes one line of a full disk, whatever library has found it full.

    Raises:
      MachineError: naming the file or folder that was being written.
    """
    try:
        yield
    except Exception as error:  # libraries raise their own
        said = no_room(error)
        if said is None or isinstance(error, MachineError):
            raise
        raise MachineError(f"{path}: {said}; {remedy} and rerun the same command") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.save(file, array)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file, from anywhere to anywhere."""
    if in_bucket(target):
        if in_bucket(source):
            bucket.copy(source, target)
        else:
            bucket.upload(source, target, sha256_of(source))
        return
    with replacing(target) as beside:
        if in_bucket(source):
            bucket.download(source, beside)
        else:
            shutil.copyfile(source, beside)


def make_directory(path: Path) -> None:
    """Makes a directory and those above it. In a bucket there are none to be made."""
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_tree(directory: Path) -> None:
    """Removes a directory and all that is in it."""
    if in_bucket(directory):
        bucket.remove_below(directory)
    else:
        shutil.rmtree(directory)


@contextmanager
def working_directory(directory: Path) -> Iterator[Path]:
    """A directory on disk for programs that write nowhere else: itself, made, or an empty one (see `publish`)."""
    if in_bucket(directory):
        with _part() as part, _saying_where(part, _CACHED):
            yield part
    else:
        with _saying_where(directory):
            make_directory(directory)
            yield directory


def publish(folder: Path, directory: Path, last: str | None = None, sent: dict[str, float] | None = None) -> None:
    """Puts what a working directory holds into the directory that it stands for.

    Args:
      folder: the working directory.
      directory: what it stands for; where that is on disk, it is the same.
      last: a file that goes after all others.
      sent: when each file was written that went before; kept up to date, and not sent again.
    """
    sent = {} if sent is None else sent
    if in_bucket(directory):
        for name in sorted(files_below(folder), key=lambda name: (name == last, name)):
            written = modified(folder / name)
            if sent.get(name) != written:
                copy_file(folder / name, directory / name)
                sent[name] = written


@contextmanager
def replacing_directory(directory: Path, last: str) -> Iterator[Path]:
    """An empty directory on disk to be filled, which takes the place of one that is empty or not there.

    On disk that happens at once, in a bucket file by file, `last` after all others.
    """
    if in_bucket(directory):
        with working_directory(directory) as folder:
            yield folder
            publish(folder, directory, last)
        return
    beside = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)  # of one that was killed
    with _saying_where(directory):
        make_directory(beside)
        yield beside
        shutil.rmtree(directory, ignore_errors=True)
        beside.replace(directory)


class GrowingFile:
    """A text file that grows, a line or more at a time.

    On disk a line is there at once. A bucket, and one that is mounted, keeps what has been written at `keep`, which
    happens by itself every half minute.
    """

    def __init__(self, path: Path, begin: str | None = None):
        """Opens the file, with `begin` in the place of what it holds; None leaves that as it is."""
        self._path, self._kept = path, time.monotonic()
        self._open, self._local, self._remedy = ExitStack(), path, "free space"
        if in_bucket(path):
            self._local, self._remedy = self._open.enter_context(_part()) / path.name, _CACHED
            if begin is None:
                begin = path.read_text(encoding="utf-8") if path.exists() else ""
        with _saying_where(self._local, self._remedy):
            if begin is not None:
                write_text(self._local, begin)
            self._file = self._local.open("a", encoding="utf-8")
        self._changed = begin is not None
        self.keep()

    def write(self, text: str) -> None:
        """Adds text."""
        with _saying_where(self._local, self._remedy):
            self._file.write(text)
            self._file.flush()
        self._changed = True
        if time.monotonic() - self._kept > _KEEP_EVERY:
            self.keep()

    def keep(self) -> None:
        """Makes what is written last."""
        with _saying_where(self._local, self._remedy):
            self._file.close()
            if in_bucket(self._path) and self._changed:
                copy_file(self._local, self._path)
            self._file = self._local.open("a", encoding="utf-8")
        self._kept, self._changed = time.monotonic(), False

    def close(self) -> None:
        """Keeps all, and closes the file."""
        with self._open:
            self.keep()
            self._file.close()
