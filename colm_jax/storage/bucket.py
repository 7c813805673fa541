"""Cloud Storage: a gs:// address as a path of etils, its objects by gcsfs. Nothing else in the package knows of either.

An object appears when its upload is whole, or not at all, and takes the place of an earlier one at once; what a reader
finds is never half-written. Directories are no things of their own: one is there as long as an object lies below it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from colm_jax.errors import MachineError, UserError

SCHEME = "gs://"
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
    """The path of a gs:// address, its bucket asked whether it may be read. Paths of etils stand in for pathlib's.

    Raises:
      UserError: gcsfs is not installed, or the bucket is not there or not open to this account.
      MachineError: Cloud Storage cannot be reached.
    """
    bucket, _, name = address.removeprefix(SCHEME).partition("/")
    if not bucket or any(part in ("", ".", "..") for part in name.rstrip("/").split("/") if name):
        raise UserError(f"{address}: no address in a bucket; write gs://BUCKET/NAME")
    _check(bucket)
    from etils import epath

    return cast(Path, epath.Path(f"{SCHEME}{bucket}/{name}".rstrip("/")))


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
    """Makes one line of what Cloud Storage, or the way to it, refuses. That there is no such object stays as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        from google.auth.exceptions import GoogleAuthError

        said = " ".join(str(error).split()) or type(error).__name__
        code = getattr(error, "code", None)
        if isinstance(error, GoogleAuthError) or code in (401, "401"):
            raise UserError(
                f"{address}: Google Cloud does not know who asks ({said}); gcloud auth application-default login"
            ) from error
        if code in (403, "403") or said.startswith("Forbidden"):
            raise UserError(
                f"{address}: not allowed ({said}); this account needs the roles Storage Object User and Storage Legacy "
                "Bucket Reader there"
            ) from error
        raise MachineError(f"{address}: Cloud Storage did not do it: {said}; the same command goes on") from error


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


def _facts(info: dict[str, Any]) -> Facts:
    if info["type"] != "file":
        raise FileNotFoundError(f"{SCHEME}{info['name']}: is no object")
    sha256 = info.get("metadata", {}).get(_SHA256)
    checksum = sha256 or (f"md5 {info['md5Hash']}" if "md5Hash" in info else f"crc32c {info['crc32c']} {info['size']}")
    return Facts(info["size"], str(info["generation"]), info["mtime"].timestamp(), sha256, checksum)


def read(path: Path, start: int, stop: int) -> bytes:
    """Bytes start..stop of an object, fewer where it ends before."""
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
    with _answered(str(directory)):
        _objects().rm(str(directory), recursive=True)
