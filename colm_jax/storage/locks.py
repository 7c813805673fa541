"""Locks on disk, which keep two processes out of one directory.

The operating system releases a lock when the process that holds it ends, for whatever reason. The lock file says who
holds it, and is removed when the lock is released.
"""

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from colm_jax.errors import UserError, no_room

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system without locks
_TRIES = 100  # to create a directory that other processes remove meanwhile
_LONGEST = 200  # characters of a command that are shown


@contextmanager
def locked(path: Path, subject: str, wait: bool = False) -> Iterator[bool]:
    """Hold a lock within the block. Yield whether it is held: it is not on a file system without locks.

    The directories above the file are created, and those created are removed at the end if they are empty.

    Args:
      path: the lock file.
      subject: what it locks, as errors name it.
      wait: wait until another holder releases it, which needs a file system with locks.

    Raises:
      UserError: another process, or another block of this one, holds it; the file cannot be created; there are no
        locks to wait for.
    """
    made: list[Path] = []
    try:
        number, held = _lock(path, subject, wait, made)
        try:
            if held:
                _write_holder(number)
            yield held
        finally:
            ours = _is_at(number, path)
            if os.name == "nt":
                os.close(number)  # Windows removes no open file; one that another process has opened since stays
            if ours:
                with suppress(OSError):
                    path.unlink()
            if os.name != "nt":
                os.close(number)
    finally:
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _lock(path: Path, subject: str, wait: bool, made: list[Path]) -> tuple[int, bool]:
    """Return the lock file's descriptor and whether it is locked; `made` gets created directories, deepest first."""
    tries = 0
    while True:
        made[:] = [folder for folder in path.parents if folder in made or not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if no_room(error):
                raise
            if _removed_meanwhile(error, path.parent):
                tries += 1
                if tries < _TRIES:
                    continue
                raise UserError(f"{subject}: {path.parent} cannot be made") from None
            raise UserError(f"{subject}: cannot be written: {error.filename}: {error.strerror}") from None
        try:
            held = lock_descriptor(number, blocking=wait)
        except BaseException as error:  # a signal while it waits, too
            if isinstance(error, OSError) and error.errno in _NO_LOCKS and not wait:
                return number, False
            os.close(number)
            if isinstance(error, OSError):
                raise UserError(f"{subject}: its file system has no locks ({error.strerror}); use another") from None
            raise
        if held and _is_at(number, path):
            return number, True
        os.close(number)
        if not held:
            raise UserError(f"{subject}: in use by {_holder(path)}; wait until it has ended, or name another place")
        # Else the holder has removed the file meanwhile, and this lock is on a file without a name.


def _removed_meanwhile(error: OSError, folder: Path) -> bool:
    """Return whether creating a directory, or a file in it, failed because another process has just removed it."""
    # `mkdir` says that it exists if it is removed between its two checks.
    return isinstance(error, FileNotFoundError) or (isinstance(error, FileExistsError) and not folder.exists())


def _is_at(number: int, path: Path) -> bool:
    """Return whether a path still names this open file."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False


def _write_holder(number: int) -> None:
    """Write who holds the lock."""
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
        os.write(number, f" {json.dumps(holder)}".encode())


def _holder(path: Path) -> str:
    """Return who holds a lock, from its file."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(1)  # on Windows, no other process can read the byte that is locked
            holder = json.loads(file.read())
        return "process {process} on {host} since {since} ({command})".format_map(holder)
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
