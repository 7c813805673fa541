"""The folder of this machine for copies of objects, what is made of other files, compiled programs, and uploads.

It is COLM_CACHE, or ~/.cache/colm_jax.
"""

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from colm_jax.errors import MachineError, UserError, no_room
from colm_jax.storage.disk import full_disk_is_one_line
from colm_jax.storage.locks import locked

REMEDY = "name a folder on a larger disk by COLM_CACHE"
_PART = f"part-{socket.gethostname()}-"  # begins the names of folders that are not complete
_DOWNLOADS = 8  # at the same time


def copies(
    directory: Path, sizes: Mapping[str, int], content: list[str], download: Callable[[Path, Path], None]
) -> Path:
    """Return a folder with copies of these files, made once per content; it replaces copies of earlier content.

    `sizes` has the bytes of each file by name, `content` identifies what they hold, `download` copies one to disk.

    Raises:
      MachineError: not enough free space.
    """
    address, version = (
        hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32] for parts in ([str(directory), *sizes], content)
    )
    folder = _folder() / address / version
    # One process of a host copies for all.
    with locked(_folder() / f"{address}.lock", f"COLM_CACHE {_folder()}", wait=True):
        if folder.is_dir():
            return folder
        needed, free = sum(sizes.values()), shutil.disk_usage(_folder()).free
        if needed > free:
            raise MachineError(
                f"{directory}: a copy takes {needed / 2**30:.1f} GiB, and {_folder()} has {free / 2**30:.1f} left; "
                f"{REMEDY}"
            )
        with new_folder() as part, ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(lambda name: download(directory / name, part / name), sizes))
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir()
            part.rename(folder)
    return folder


def made_once(kind: str, identity: list[str], make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` fills, made once.

    Args:
      kind: the folder within the cache that holds all of this kind.
      identity: what identifies the content.
      make: fills an empty folder.
    """
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = _folder() / kind / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with (
        full_disk_is_one_line(folder, REMEDY),
        locked(folder.parent / f"{name}.lock", f"COLM_CACHE {_folder()}", wait=True),
    ):
        if not folder.is_dir():
            with new_folder() as part:
                make(part)
                part.rename(folder)
    return folder


def is_made(kind: str, folder: Path) -> bool:
    """Return whether a folder is one that `made_once` made, or is within one."""
    return folder.is_relative_to(_folder() / kind)


def programs_folder() -> Path | None:
    """Return the folder in which JAX may keep compiled programs; None where nothing can be written."""
    with suppress(OSError, RuntimeError, UserError):  # RuntimeError: the user has no home
        folder = _folder() / "programs"
        folder.mkdir(mode=0o700, exist_ok=True)  # what others write there would be run
        return folder if os.access(folder, os.W_OK) else None
    return None


@contextmanager
def new_folder() -> Iterator[Path]:
    """Yield an empty folder in the cache, removed afterwards."""
    _remove_dead_parts()
    prefix = f"{_PART}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _folder() -> Path:
    given = os.environ.get("COLM_CACHE")
    folder = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "colm_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if no_room(error) is not None:
            raise
        raise UserError(f"COLM_CACHE {folder}: cannot be made: {error.strerror}; name another folder") from None
    return folder


@cache
def _remove_dead_parts() -> None:
    """Remove the folders of processes of this machine that were killed."""
    for folder in _folder().glob(f"{_PART}*"):
        number = folder.name.removeprefix(_PART).split("-")[0]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        if os.name != "nt":  # there, signal 0 is Ctrl-C
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
