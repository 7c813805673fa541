"""Locks on disk, which keep two processes out of one directory.

A lock is `flock` on a small file, so that it ends with the process that holds it, however that ends. The file says who
holds it and is removed when the lock is released. A bucket has no locks.
"""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from colm_jax.errors import UserError, no_room
from colm_jax.storage import bucket

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system that cannot lock
_TRIES = 100  # to make a directory that others remove meanwhile
_LONGEST = 200  # characters of a command that are shown


@contextmanager
def locked(path: Path, subject: str, wait: bool = False) -> Iterator[bool]:
    """Holds a lock within the block. Yields whether it is held: not in a bucket, nor on a file system without locks.

    Directories above the file are made, and those made are removed at the end where nothing is left in them.

    Args:
      path: the lock file.
      subject: what it locks, as errors name it.
      wait: wait for another holder to release it, which needs a file system that has locks.

    Raises:
      UserError: another process, or another block of this one, holds it; no file can be made there; there are no locks
        to wait for.
    """
    if str(path).startswith(bucket.SCHEME):
        yield False
        return
    made: list[Path] = []
    try:
        number, held = _lock(path, subject, wait, made)
        try:
            if held:
                _sign(number)
            yield held
        finally:
            if _stands(number, path):
                with suppress(OSError):
                    path.unlink()
            os.close(number)
    finally:
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _lock(path: Path, subject: str, wait: bool, made: list[Path]) -> tuple[int, bool]:
    """The lock file's descriptor, and whether it is locked. `made` gets the directories made, the deepest first."""
    tries = 0
    while True:
        made[:] = [folder for folder in path.parents if folder in made or not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            tries += 1
            if tries < _TRIES:
                continue  # the process that made the directory has just removed it
            raise UserError(f"{subject}: {path.parent} cannot be made") from None
        except OSError as error:
            if no_room(error):
                raise
            raise UserError(f"{subject}: cannot be written: {error.filename}: {error.strerror}") from None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException as error:  # asked to stop while it waits, too
            if isinstance(error, OSError) and error.errno in _NO_LOCKS and not wait:
                return number, False
            os.close(number)
            if isinstance(error, BlockingIOError):
                found = f"in use by {_holder(path)}; wait until it has ended, or name another place"
                raise UserError(f"{subject}: {found}") from None
            if isinstance(error, OSError):
                raise UserError(f"{subject}: its file system has no locks ({error.strerror}); use another") from None
            raise
        if _stands(number, path):
            return number, True
        os.close(number)  # its holder has removed the file meanwhile; the lock is another file's now


def _stands(number: int, path: Path) -> bool:
    """Whether an open file is still the one that has this name."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False


def _sign(number: int) -> None:
    """Writes down who holds the lock."""
    name, *arguments = sys.argv or [""]
    command = shlex.join([Path(name).name or "python", *arguments])
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command if len(command) <= _LONGEST else f"{command[:_LONGEST]} ...",
    }
    with suppress(OSError):  # a full disk: it is locked all the same
        os.ftruncate(number, 0)
        os.write(number, json.dumps(holder).encode())


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        holder = json.loads(path.read_bytes())
        return "process {process} on {host} since {since} ({command})".format_map(holder)
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
