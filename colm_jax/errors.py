"""What the command line prints as one line: what the user got wrong (exit 2), and being asked to stop (143)."""


class UserError(ValueError):
    """Wrong input. The message names the file, line or key, the value received, and the remedy."""


class Stopped(BaseException):
    """The process was asked to stop, by SIGTERM; nothing but the command line catches it."""

    def __init__(self):
        super().__init__("stopped by SIGTERM; the same command goes on from here")


class Preempted(Exception):
    """Training was asked to stop; a checkpoint of `step` is written."""

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM behind step {step}, which is saved; the same command goes on from here")
        self.step = step
