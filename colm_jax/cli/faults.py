"""Errors of the command line: the exit status, and the one line that says why.

An error that is not listed here is a bug and ends with Python's traceback. COLM_TRACEBACK=1 shows the traceback of
every error.
"""

import errno
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from colm_jax.errors import MachineError, Preempted, Stopped, UserError, no_room

_SMALLER = (
    "Make it smaller: --dtype bfloat16, --batch_size or --gin.Training.batch_size, --trainable lora or gate, "
    "--gin.Training.remat=\"'full'\", or more devices by --mesh."
)
# The user's to correct if the path was given in the command; otherwise a fault of the machine.
_GIVEN = {
    getattr(errno, name)
    for name in "ENOENT ENOTDIR EISDIR EEXIST ENOTEMPTY ELOOP ENAMETOOLONG EACCES EPERM EROFS EINVAL".split()
}
_AGAIN = "rerun the same command to resume"


def answer(error: BaseException, arguments: Sequence[str]) -> tuple[int, str] | None:
    """Return exit status and line; None for an error that is none of the user's or the machine's.

    Args:
      error: what ended the command.
      arguments: the command's, by which a path is known that the user gave.
    """
    if isinstance(error, UserError):
        return 2, _one_line(error)
    if isinstance(error, Preempted | Stopped):
        return 128 + signal.SIGTERM, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, f"stopped; {_AGAIN}"
    if isinstance(error, MachineError):
        return 1, _one_line(error)
    if (full := no_room(error)) is not None:
        where = error.filename if isinstance(error, OSError) else _one_line(error)[:200]
        return 1, f"{full}{f' ({where})' if where else ''}; free space and rerun the same command"
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        said = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2]
        return 1, f"no memory left: {said} {_SMALLER}"
    if isinstance(error, MemoryError):
        return 1, f"no memory left on this machine: {_one_line(error)}".rstrip(": ")
    if isinstance(error, OSError):
        return _of_the_system(error, arguments)
    return None


@contextmanager
def said_once() -> Iterator[None]:
    """Suppress a library thread's own report of a full disk, which the command reports."""
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is None or no_room(ended.exc_value) is None or os.environ.get("COLM_TRACEBACK"):
            before(ended)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _of_the_system(error: OSError, arguments: Sequence[str]) -> tuple[int, str]:
    """Return status and line of an error of the operating system."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    said = error.strerror or _one_line(error) or type(error).__name__
    line = f"{' to '.join(names)}: {said}" if names else said
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return 1, f"{line}; allow more (ulimit -n)"
    if error.errno in _GIVEN and any(_is_given(name, arguments) for name in names):
        return 2, line
    return 1, f"{line}; {_AGAIN}"


def _is_given(name: str, arguments: Sequence[str]) -> bool:
    """Return whether a path is one of the arguments, or below one."""
    path = os.path.abspath(name)
    words = [word.strip("'\"") for argument in arguments for word in (argument, argument.partition("=")[2])]
    roots = [os.path.abspath(word) for word in words if word and not word.startswith("-")]
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)
