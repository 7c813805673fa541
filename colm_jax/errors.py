"""What the command line prints as one line: the user's error (exit 2), the machine's (1), being asked to stop (143)."""

import errno
import re

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not grow so large there (ulimit -f, or the file system's limit)",
}
_FULL_SAID = {  # as libraries say it whose errors have no errno: safetensors, TensorStore, ArrayRecord, NumPy
    errno.ENOSPC: r"no space left on device|\bENOSPC\b|\bos error 28\b|^\d+ requested and \d+ written$",
    errno.EDQUOT: r"disk quota exceeded|\bEDQUOT\b|\bos error 122\b",
    errno.EFBIG: r"file too large|\bEFBIG\b|\bos error 27\b",
}


class UserError(ValueError):
    """Wrong input. The message names the file, line or key, the value received, and the remedy."""


class MachineError(Exception):
    """What no input can mend: the machine, or the way to the job's other processes. Exit status 1, in one line."""


class Stopped(BaseException):
    """The process was asked to stop, by SIGTERM; nothing but the command line catches it."""

    def __init__(self):
        super().__init__("stopped by SIGTERM; rerun the same command to resume")


class Preempted(Exception):
    """Training was asked to stop; a checkpoint of `step` is written."""

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved; rerun the same command to resume")
        self.step = step


def no_room(error: BaseException) -> str | None:
    """What an error of any library says of a full disk, a quota or a limit on file sizes; None if it is another."""
    if isinstance(error, OSError) and error.errno is not None:
        return _FULL.get(error.errno)
    return next((_FULL[n] for n, said in _FULL_SAID.items() if re.search(said, str(error), re.IGNORECASE)), None)
