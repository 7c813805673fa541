"""`colm`: one subcommand per stage, and `colm run` for all of them. Exit 0; 2 for what the user got wrong; 1 else."""

import json
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

from colm_jax.cli import faults
from colm_jax.cli.flags import Flags
from colm_jax.cli.parser import FLAGS_ONLY, parse
from colm_jax.errors import Stopped, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the process's exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with faults.said_once():
            return _main(given)
    except (Exception, Stopped, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and _drops_output() and isinstance(error, BrokenPipeError):
            return 0
        found = faults.answer(error, given)
        if found is None or os.environ.get("COLM_TRACEBACK"):
            raise
        status, line = found
        print(f"colm: {line}", file=sys.stderr)
        return status


def _main(arguments: list[str]) -> int:
    # Before NumPy (and PyTorch, which some packages import) is there: threads of OpenBLAS and OpenMP spin while they
    # wait for each other, and on a busy machine a gate's fit or PyTorch's step then takes several times as long.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rest, files, bindings = _split_gin(arguments)
    checks_only = rest[:1] == ["check"] and len(rest) > 1 and rest[1] not in ("-h", "--help")
    if rest == ["check"]:
        raise UserError("check: write the command after it, as in colm check train --base B ...")
    rest = rest[1:] if checks_only else rest
    passed_on = rest[1:] if rest[:1] == ["lm_eval"] else []  # another program's flags
    flags = parse(rest[:1] if passed_on else rest)
    _check_paths(flags)
    if bindings and flags.command in FLAGS_ONLY:
        raise UserError(
            f"--gin.{bindings[0]}: would change nothing, as {flags.command} reads no settings; "
            f"see colm {flags.command} --help"
        )
    flags.passed_on, flags.gin = passed_on, (files, bindings)

    from colm_jax.settings import gin_edge

    flags.bindings = gin_edge.read(files, bindings)
    if checks_only:
        flags.check(flags)
        return 0
    return _run(flags)


def _split_gin(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Split off --gin_file F, --gin_file=F and --gin.NAME=VALUE: (the other arguments, files, bindings)."""
    rest: list[str] = []
    files: list[str] = []
    bindings: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--gin_file":
            try:
                files.append(next(waiting))
            except StopIteration:
                raise UserError("--gin_file: needs a file") from None
        elif argument.startswith("--gin_file="):
            files.append(argument.removeprefix("--gin_file="))
        elif argument.startswith("--gin."):
            if "=" not in argument:
                raise UserError(f"{argument}: a binding looks like --gin.Training.learning_rate=1e-4")
            bindings.append(argument.removeprefix("--gin."))
        else:
            rest.append(argument)
    return rest, files, bindings


def _run(flags: Flags) -> int:
    """Do the command's work, as one of several processes where it is; return the exit status."""
    import jax

    from colm_jax import console
    from colm_jax.cli import out, programs
    from colm_jax.parallel import is_first, join, watched

    out.check_flags(flags)
    several = getattr(flags, "distributed", None) is not None
    if several:
        join(flags.distributed)
    else:
        programs.keep(flags.command)
    speaks = not several or is_first()  # asked only then: it starts the devices, and some commands need none
    console.errors.quiet = not speaks
    together = several and jax.process_count() > 1
    with (
        watched() if several else nullcontext(),
        nullcontext() if together else _ending_on_sigterm(),
        out.claimed(flags),
    ):
        result = flags.work(flags)
    if result is not None and speaks:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    sys.stdout.flush()
    return 1 if result is not None and result.get("failed") else 0


def _drops_output() -> bool:
    """Discard unwritten output; return whether the reader has closed the pipe, as in `colm show RUN | head`.

    Python would complain of what is not written when it ends.
    """
    ended = False
    try:
        if hasattr(select, "poll"):  # not on Windows
            look = select.poll()
            look.register(sys.stdout.fileno(), select.POLLOUT)
            ended = any(found & select.POLLERR for _, found in look.poll(0))
    except (OSError, ValueError):  # it is no file, or closed
        return False
    with suppress(OSError):
        sys.stdout.flush()
        if not ended:
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, files closed; training and sweeps handle it themselves and save first.

    Python's default would kill the process at once, or never where it is a container's first one. Of several processes
    JAX watches for it (`parallel.asked_to_stop`).
    """

    def stop(*_) -> None:
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in the main thread only
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_paths(flags: Flags) -> None:
    """Refuse addresses that are not read or written here: of other stores than Cloud Storage, and a sweep's or demo's.

    Those two link and lock what they share, which a bucket cannot.
    """
    for name, value in vars(flags).items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str) or name == "stop" or not (scheme := re.match(r"(gs|s3|az|hdfs)://", text)):
                continue
            if scheme[1] != "gs":
                raise UserError(f"--{name} {text}: is no path; of addresses only gs://BUCKET/NAME is read and written")
            if name == "store" or (name == "out" and flags.command in ("sweep", "demo")):
                raise UserError(f"--{name} {text}: needs links and locks, which a bucket has not; name a path on disk")


if __name__ == "__main__":
    sys.exit(main())
