"""Errors that the command line prints as one line: of the user (exit 2), of the machine (1), and SIGTERM (143)."""

import errno
import re

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "file size limit reached (ulimit -f, or the file system's limit)",
}
_FULL_MESSAGES = {  # of libraries whose errors have no errno: safetensors, TensorStore, ArrayRecord, NumPy
    errno.ENOSPC: r"no space left on device|\bENOSPC\b|\bos error 28\b|^\d+ requested and \d+ written$",
    errno.EDQUOT: r"disk quota exceeded|\bEDQUOT\b|\bos error 122\b",
    errno.EFBIG: r"file too large|\bEFBIG\b|\bos error 27\b",
}


class UserError(ValueError):
    """Wrong input. The message names the file, line or key, the value received, and the remedy.

    Example:
      >>> from colm_jax import GenerationSettings, UserError
      >>> try:
      ...     GenerationSettings(threshold=2)
      ... except UserError as error:
      ...     print(error)
      threshold must be a number from 0 to 1, got 2
    """


class MachineError(Exception):
    """A failure of the machine or of the connection to the job's other processes. Exit status 1, in one line."""


class Stopped(BaseException):
    """The process received SIGTERM; only the command line catches this."""

    def __init__(self):
        super().__init__("stopped by SIGTERM; rerun the same command to resume")


class Preempted(Exception):
    """Training received SIGTERM; a checkpoint of `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved; rerun the same command to resume")
        self.step = step


def no_room(error: BaseException) -> str | None:
    """Return the message for a full disk, a quota or a file size limit behind a library's error; None for others."""
    if isinstance(error, OSError) and error.errno is not None:
        return _FULL.get(error.errno)
    return next((_FULL[n] for n, text in _FULL_MESSAGES.items() if re.search(text, str(error), re.IGNORECASE)), None)
