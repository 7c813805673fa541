"""Cloud Storage: a gs:// address as a path of etils, its objects by gcsfs. Nothing else in the package knows of either.

An object appears when its upload is whole, or not at all, and takes the place of an earlier one at once; what a reader
finds is never half-written. Directories are no things of their own: one is there as long as an object lies below it.
"""

import errno
import fnmatch
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from etils.epath.gpath import PosixGPath

from colm_jax.errors import MachineError, UserError

SCHEME = "gs://"
_AHEAD = 8 << 20  # bytes of a request, of an object that is read in order
_SHA256 = "colm-sha256"  # metadata of what this package writes, so that nothing has to be read again to be compared


@dataclass(frozen=True)
class Facts:
    """What Cloud Storage knows of an object."""

    size: int  # bytes
    generation: str  # another one for each content that stood here
    modified: float  # seconds since 1970
    sha256: str | None  # where this package wrote it
    checksum: str  # of its content: SHA-256, else MD5, else (of composed objects) CRC32C and size


def open_address(address: str) -> Path:
    """The path of a gs:// address, its bucket asked whether it may be read.

    Raises:
      UserError: gcsfs is not installed, or the bucket is not there or not open to this account.
      MachineError: Cloud Storage cannot be reached, or does not know the account.
    """
    bucket, _, name = address.removeprefix(SCHEME).partition("/")
    if not bucket or any(part in ("", ".", "..") for part in name.rstrip("/").split("/") if name):
        raise UserError(f"{address}: no address in a bucket; write gs://BUCKET/NAME")
    if found := re.search(r"[#*?\[\]%\\\x00-\x1f]", name):
        raise UserError(f"{address}: {found[0]!r} means something else to programs that read addresses; rename it")
    _check(bucket)
    return cast(Path, BucketPath(f"{SCHEME}{bucket}/{name}".rstrip("/")))


class BucketPath(PosixGPath):
    """A path of etils that asks by the functions below: a refusal is one line, and no letter in a name is a pattern."""

    def exists(self) -> bool:
        """Whether an object is there, or anything below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether an object is there."""
        try:
            return bool(facts(cast(Path, self)))
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Whether anything lies below it."""
        return has_below(cast(Path, self))

    def iterdir(self):
        """What lies right in it, in order."""
        return iter([self / name for name in names_in(cast(Path, self))])

    def glob(self, pattern):
        """What lies right in it and is named so, in order."""
        return (self / name for name in names_in(cast(Path, self)) if fnmatch.fnmatchcase(name, pattern))

    def open(self, mode="r", *, encoding=None, errors=None, **_):
        """Opens the object for reading, as text or as bytes."""
        if mode not in ("r", "rb"):
            raise ValueError(f"{self}: opened as {mode!r}; objects are written whole")
        raw = io.BufferedReader(_Reader(cast(Path, self)), _AHEAD)
        return raw if mode == "rb" else io.TextIOWrapper(raw, encoding or "utf-8", errors)

    def read_bytes(self) -> bytes:
        """All of the object."""
        return read(cast(Path, self), 0, None)

    def read_text(self, encoding=None) -> str:
        """All of the object, decoded."""
        return self.read_bytes().decode(encoding or "utf-8")

    def unlink(self, missing_ok=False) -> None:
        """Removes the object."""
        try:
            with _answered(str(self)):
                _objects().rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, mode=None, parents=False, exist_ok=False) -> None:
        """There are no directories to be made."""


class _Reader(io.RawIOBase):
    """An object's bytes in order, a request for each `readinto`."""

    def __init__(self, path: Path):
        """Asks how long the object is."""
        self._path, self._size, self._place = path, facts(path).size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer) -> int:
        """The next bytes, as many as there is room for."""
        wanted = min(len(buffer), self._size - self._place)
        found = read(self._path, self._place, self._place + wanted) if wanted else b""
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


@cache
def _check(bucket: str) -> None:
    """Asks once whether a bucket may be read."""
    objects = _objects()
    try:
        with _answered(f"{SCHEME}{bucket}"):
            objects.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError:
        raise UserError(f"{SCHEME}{bucket}: there is no such bucket") from None


@cache
def _objects() -> Any:
    """gcsfs's file system."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # etils would ask TensorFlow where it is installed
    try:
        import gcsfs  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(f"{SCHEME} needs gcsfs: pip install 'colm-jax[gcs]'") from None
    import logging

    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the trace of everything that it tries again
    for name in ("gs", "gcs"):  # etils makes its own from the same settings
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False  # other processes write here too
    return fsspec.filesystem("gcs")


@contextmanager
def _answered(address: str) -> Iterator[None]:
    """Makes one line of what Cloud Storage, or the way to it, refuses. That there is no such object stays as it is.

    Only what this account may not do is the user's error. Who does not know the account may be a machine that has just
    started, and a job that ends so is started again.
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
                f"{address}: not allowed ({said}); this account needs the roles Storage Object User and Storage Legacy "
                "Bucket Reader there"
            ) from error
        if code == "401" or isinstance(error, GoogleAuthError):
            raise MachineError(
                f"{address}: Google Cloud does not know who asks ({said}); gcloud auth application-default login"
            ) from error
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise MachineError(
                f"{address}: no room for a copy; name a folder on a larger disk by COLM_CACHE"
            ) from error
        raise MachineError(f"{address}: Cloud Storage failed: {said}; rerun the same command to resume") from error


def facts(path: Path) -> Facts:
    """Of an object.

    Raises:
      FileNotFoundError: it is not there.
    """
    with _answered(str(path)):
        return _facts(_objects().info(str(path)))


def facts_below(directory: Path) -> dict[str, Facts]:
    """Of every object below a directory, by its name relative to it; of none where there is no such directory."""
    prefix = str(directory).removeprefix(SCHEME) + "/"
    with _answered(str(directory)):
        found = _objects().find(str(directory), detail=True)
    # A name that ends in / is no file: the console makes such an object where one creates a folder there.
    names = [name for name in sorted(found) if name.startswith(prefix) and not name.endswith("/")]
    return {name.removeprefix(prefix): _facts(found[name]) for name in names}


def names_in(directory: Path) -> list[str]:
    """What lies right in a directory, in order."""
    prefix = str(directory).removeprefix(SCHEME) + "/"
    try:
        with _answered(str(directory)):
            found = _objects().ls(str(directory), detail=False)
    except FileNotFoundError:
        return []
    names = {name.removeprefix(prefix).rstrip("/") for name in found if name.startswith(prefix)}
    return sorted(names - {""})


def has_below(directory: Path) -> bool:
    """Whether anything lies below a directory."""
    bucket, _, name = str(directory).removeprefix(SCHEME).partition("/")
    with _answered(str(directory)):
        prefix = f"{name}/" if name else ""
        found = _objects().call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1, json_out=True)
    return bool(found.get("items"))


def _facts(info: dict[str, Any]) -> Facts:
    if info["type"] != "file":
        raise FileNotFoundError(f"{SCHEME}{info['name']}: is no object")
    sha256 = info.get("metadata", {}).get(_SHA256)
    checksum = sha256 or (f"md5 {info['md5Hash']}" if "md5Hash" in info else f"crc32c {info['crc32c']} {info['size']}")
    return Facts(info["size"], str(info["generation"]), info["mtime"].timestamp(), sha256, checksum)


def read(path: Path, start: int, stop: int | None) -> bytes:
    """Bytes start..stop of an object (None: to its end), fewer where it ends before."""
    with _answered(str(path)):
        return _objects().cat_file(str(path), start=start, end=stop)


def upload(file: Path, path: Path, sha256: str) -> None:
    """Makes an object of a file."""
    with _answered(str(path)):
        _objects().put_file(str(file), str(path), metadata={_SHA256: sha256})


def download(path: Path, file: Path) -> None:
    """Writes an object's content into a file."""
    with _answered(str(path)):
        _objects().get_file(str(path), str(file))


def copy(source: Path, target: Path) -> None:
    """Copies an object within Cloud Storage."""
    with _answered(str(target)):
        _objects().cp_file(str(source), str(target))


def remove_below(directory: Path) -> None:
    """Removes every object below a directory."""
    for name in facts_below(directory):
        with _answered(f"{directory}/{name}"), suppress(FileNotFoundError):
            _objects().rm_file(f"{directory}/{name}")
