"""Cloud Storage: a gs:// address as an etils path, its objects by gcsfs. No other module of the package uses either.

An object appears when its upload is complete and replaces an earlier one atomically, so that no reader sees part of
one. There are no directories: one exists as long as an object's name begins with it. What only a file on disk can
serve (memory maps, ArrayRecord, tokenizers) goes through a copy in `cache`.
"""

import errno
import fnmatch
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from etils.epath.gpath import PosixGPath

from colm_jax.errors import MachineError, UserError
from colm_jax.storage.cache import REMEDY, copies, new_folder
from colm_jax.storage.disk import DISK, full_disk_is_one_line
from colm_jax.storage.protocol import Storage

SCHEME = "gs://"
_READ_AHEAD = 8 << 20  # bytes of a request when an object is read in order
_SHA256 = "colm-sha256"  # metadata of the objects this package writes, so that no comparison reads them


@dataclass(frozen=True)
class _Facts:
    """Metadata of an object."""

    size: int  # bytes
    generation: str  # another one for each content of this name
    modified: float  # seconds since 1970
    sha256: str | None  # where this package wrote it
    checksum: str  # of its content: SHA-256, else MD5, else (of composed objects) CRC32C and size


def open_address(address: str) -> Path:
    """Return the path of a gs:// address after checking once that its bucket can be read.

    Raises:
      UserError: gcsfs is not installed, the bucket does not exist, or this account has no access to it.
      MachineError: Cloud Storage cannot be reached, or authentication failed.
    """
    bucket, _, name = address.removeprefix(SCHEME).partition("/")
    if not bucket or any(part in ("", ".", "..") for part in name.rstrip("/").split("/") if name):
        raise UserError(f"{address}: no address in a bucket; write gs://BUCKET/NAME")
    if found := re.search(r"[#*?\[\]%\\\x00-\x1f]", name):
        raise UserError(f"{address}: {found[0]!r} has a special meaning in addresses; rename it")
    _check(bucket)
    return BucketPath(f"{SCHEME}{bucket}/{name}".rstrip("/"))


class BucketPath(PosixGPath):
    """An etils path that uses the functions below: errors are one line, and no letter of a name is a pattern."""

    @property
    def parents(self) -> Sequence[Path]:
        """The directories above it, up to the bucket."""
        return super().parents[:-2]  # without /gs and /

    def exists(self) -> bool:
        """Return whether an object has this name, or begins with it as a directory."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether an object has this name."""
        try:
            return bool(_facts(self))
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Return whether an object's name begins with it as a directory."""
        bucket, _, name = str(self).removeprefix(SCHEME).partition("/")
        with _one_line_errors(self):
            prefix = f"{name}/" if name else ""
            found = _objects().call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1, json_out=True)
        return bool(found.get("items"))

    def iterdir(self):
        """Iterate over its entries, sorted; over none where it does not exist."""
        prefix = str(self).removeprefix(SCHEME) + "/"
        try:
            with _one_line_errors(self):
                found = _objects().ls(str(self), detail=False)
        except FileNotFoundError:
            found = []
        names = {name.removeprefix(prefix).rstrip("/") for name in found if name.startswith(prefix)}
        return iter([self / name for name in sorted(names - {""})])

    def glob(self, pattern):
        """Iterate over its entries whose names match, sorted."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def resolve(self, strict=False):
        """Return the path: it is absolute, and there are no links."""
        return self

    def open(self, mode="r", *, encoding=None, errors=None, **_):
        """Open the object for reading, as text or as bytes."""
        if mode not in ("r", "rb"):
            raise ValueError(f"{self}: opened as {mode!r}; objects can only be written as a whole")
        raw = io.BufferedReader(_Reader(self), _READ_AHEAD)
        return raw if mode == "rb" else io.TextIOWrapper(raw, encoding or "utf-8", errors)

    def read_bytes(self) -> bytes:
        """Return the content of the object."""
        return _read(self, 0, None)

    def read_text(self, encoding=None) -> str:
        """Return the decoded content of the object."""
        return self.read_bytes().decode(encoding or "utf-8")

    def unlink(self, missing_ok=False) -> None:
        """Remove the object."""
        with suppress(FileNotFoundError) if missing_ok else nullcontext(), _one_line_errors(self):
            _objects().rm_file(str(self))

    def mkdir(self, mode=None, parents=False, exist_ok=False) -> None:
        """Do nothing: there are no directories."""

    def rmdir(self) -> None:
        """Do nothing: there are no directories."""

    def hardlink_to(self, target) -> None:
        """Raise OSError: there are no links."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(self))


class _Reader(io.RawIOBase):
    """The bytes of an object in order; each `readinto` is a request."""

    def __init__(self, path: Path):
        self._path, self._size, self._place = path, _facts(path).size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        wanted = min(len(buffer), self._size - self._place)
        found = _read(self._path, self._place, self._place + wanted) if wanted else b""
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


@cache
def _check(bucket: str) -> None:
    """Check once that a bucket can be read."""
    objects = _objects()
    try:
        with _one_line_errors(f"{SCHEME}{bucket}"):
            objects.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError:
        raise UserError(f"{SCHEME}{bucket}: there is no such bucket") from None


@cache
def _objects() -> Any:
    """Return gcsfs's file system."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # else etils uses TensorFlow where it is installed
    try:
        import gcsfs  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(f"{SCHEME} needs gcsfs: pip install 'colm-jax[gcs]'") from None
    import logging

    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of every retry
    for name in ("gs", "gcs"):  # etils creates its own file system from the same settings
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False  # other processes write here too
    return fsspec.filesystem("gcs")


@contextmanager
def _one_line_errors(address: str | Path) -> Iterator[None]:
    """Turn errors of Cloud Storage, or of the connection to it, into one line; FileNotFoundError passes.

    Missing permissions are the user's error. Failed authentication may be that of a machine that has just started, and
    schedulers restart a job that ends with a MachineError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        from google.auth.exceptions import GoogleAuthError

        said = " ".join(str(error).split()) or type(error).__name__
        code = str(getattr(error, "code", ""))
        if code == "403" or said.startswith("Forbidden"):
            raise UserError(
                f"{address}: permission denied ({said}); this account needs the roles Storage Object User and Storage "
                "Legacy Bucket Reader there"
            ) from error
        if code == "401" or isinstance(error, GoogleAuthError):
            raise MachineError(
                f"{address}: Google Cloud authentication failed ({said}); gcloud auth application-default login"
            ) from error
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise MachineError(f"{address}: no room for a copy; {REMEDY}") from error
        raise MachineError(f"{address}: Cloud Storage failed: {said}; rerun the same command to resume") from error


def _facts(path: Path) -> _Facts:
    """Return the metadata of an object.

    Raises:
      FileNotFoundError: it does not exist.
    """
    with _one_line_errors(path):
        return _parse_info(_objects().info(str(path)))


def _facts_below(directory: Path) -> dict[str, _Facts]:
    """Return the metadata of every object below a directory, by its relative name."""
    prefix = str(directory).removeprefix(SCHEME) + "/"
    with _one_line_errors(directory):
        found = _objects().find(str(directory), detail=True)
    # A name that ends in / is no file: the console creates such an object for a new folder.
    names = [name for name in sorted(found) if name.startswith(prefix) and not name.endswith("/")]
    return {name.removeprefix(prefix): _parse_info(found[name]) for name in names}


def _parse_info(info: dict[str, Any]) -> _Facts:
    if info["type"] != "file":
        raise FileNotFoundError(f"{SCHEME}{info['name']}: is not an object")
    sha256 = info.get("metadata", {}).get(_SHA256)
    checksum = sha256 or (f"md5 {info['md5Hash']}" if "md5Hash" in info else f"crc32c {info['crc32c']} {info['size']}")
    return _Facts(info["size"], str(info["generation"]), info["mtime"].timestamp(), sha256, checksum)


def _read(path: Path, start: int, stop: int | None) -> bytes:
    with _one_line_errors(path):
        return _objects().cat_file(str(path), start=start, end=stop)


class _Bucket:
    """`Storage` in buckets of Cloud Storage."""

    has_links, read_size, full_remedy = False, 16 << 20, REMEDY

    read_range = staticmethod(_read)

    def size(self, path: Path) -> int:
        return _facts(path).size

    def modified(self, path: Path) -> float:
        return _facts(path).modified

    def sha256(self, path: Path) -> str:
        known = _facts(path).sha256
        if known is not None:
            return known
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def checksums(self, directory: Path, names: Iterable[str]) -> dict[str, str]:
        found = _facts_below(directory)
        return {name: found[name].checksum for name in names if name in found}

    def files_below(self, directory: Path) -> list[str]:
        return list(_facts_below(directory))

    def check_regular(self, path: Path) -> None:
        pass  # every object is a file

    def check_writable(self, path: Path) -> None:
        probe = path.with_name(path.name + ".tmp")
        with self.replacing(probe) as file:
            file.touch()
        probe.unlink()

    def local_copy(self, path: Path) -> Path:
        return self._copies(path.parent, {path.name: _facts(path)}) / path.name

    def local_copies(self, directory: Path, patterns: Iterable[str]) -> Path:
        names = re.compile("|".join(map(fnmatch.translate, patterns)))
        found = _facts_below(directory)
        return self._copies(
            directory, {name: found[name] for name in found if "/" not in name and names.fullmatch(name)}
        )

    def _copies(self, directory: Path, found: dict[str, _Facts]) -> Path:
        sizes = {name: facts.size for name, facts in found.items()}
        return copies(directory, sizes, [facts.generation for facts in found.values()], self.download)

    @contextmanager
    def local_start(self, path: Path, length: int) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            sparse = Path(folder) / path.name
            sparse.write_bytes(_read(path, 0, length))
            os.truncate(sparse, self.size(path))
            yield sparse

    def download(self, path: Path, file: Path) -> None:
        with _one_line_errors(path):
            _objects().get_file(str(path), str(file))

    def copy_from(self, source: Path, storage: Storage, path: Path) -> None:
        noted = {} if storage is self else {"metadata": {_SHA256: storage.sha256(source)}}
        with _one_line_errors(path):
            copy = _objects().cp_file if storage is self else _objects().put_file
            copy(str(source), str(path), **noted)

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        with self.working_directory(path.parent) as folder:
            yield folder / path.name
            self.copy_from(folder / path.name, DISK, path)

    @contextmanager
    def replacing_directory(self, directory: Path, last: str) -> Iterator[Path]:
        with self.working_directory(directory) as folder:
            yield folder
            self.publish(folder, directory, last, {})

    @contextmanager
    def working_directory(self, directory: Path) -> Iterator[Path]:
        with new_folder() as folder, full_disk_is_one_line(folder, self.full_remedy):
            yield folder

    def publish(self, folder: Path, directory: Path, last: str | None, sent: dict[str, float]) -> None:
        for name in sorted(DISK.files_below(folder), key=lambda name: (name == last, name)):
            written = DISK.modified(folder / name)
            if sent.get(name) != written:
                self.copy_from(folder / name, DISK, directory / name)
                sent[name] = written

    def remove_tree(self, directory: Path) -> None:
        for name in _facts_below(directory):
            (directory / name).unlink(missing_ok=True)

    def locked(self, path: Path, subject: str, wait: bool) -> nullcontext[bool]:
        return nullcontext(False)


BUCKET: Storage = _Bucket()
