"""What the command line prints as one line: the user's error (exit 2), the machine's (1), being asked to stop (143)."""


class UserError(ValueError):
    """Wrong input. The message names the file, line or key, the value received, and the remedy."""


class MachineError(Exception):
    """What no input can mend: the machine, or the way to the job's other processes. Exit status 1, in one line."""


class Stopped(BaseException):
    """The process was asked to stop, by SIGTERM; nothing but the command line catches it."""

    def __init__(self):
        super().__init__("stopped by SIGTERM; the same command goes on from here")


class Preempted(Exception):
    """Training was asked to stop; a checkpoint of `step` is written."""

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM behind step {step}, which is saved; the same command goes on from here")
        self.step = step
