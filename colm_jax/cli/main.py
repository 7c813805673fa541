"""`colm`: one subcommand per stage, and `colm run` for all of them. Exit 0; 2 for what the user got wrong; 1 else."""

import argparse
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
from colm_jax.cli.parser import make_parser
from colm_jax.errors import Stopped, UserError

_MACHINES = ("inspect", "plan", "bench")  # commands of cli.machines; the others are cli.commands'


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the process's exit status."""
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


def _drops_output() -> bool:
    """Discard unwritten output; return whether the reader has closed the pipe, as in `colm show RUN | head`.

    Python would complain of what is not written when it ends.
    """
    look = select.poll()
    try:
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
def _heeding_sigterm() -> Iterator[None]:
    """Lets SIGTERM end a command as Ctrl-C does, files closed; training and sweeps take it over and save first.

    Left alone it would kill at once, and not at all in a container's first process. Of several processes JAX looks out
    for it (`parallel.asked_to_stop`).
    """

    def stop(*_) -> None:
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in that one only
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_paths(flags: argparse.Namespace) -> None:
    """Rejects addresses that are not read or written here: of other stores than Cloud Storage, and a sweep's or demo's.

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


def _main(arguments: list[str]) -> int:
    # Before NumPy (and PyTorch, which some packages import) is there: threads of OpenBLAS and OpenMP spin while they
    # wait for each other, and on a busy machine a gate's fit or PyTorch's step then takes several times as long.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rest, files, bindings = [], [], []  # type: list[str], list[str], list[str]
    if any(argument.startswith("--gin") for argument in arguments):
        from colm_jax.cli import gin_edge

        rest, files, bindings = gin_edge.split_arguments(arguments)
    else:
        rest = arguments
    checks_only = rest[:1] == ["check"] and rest[1:2] not in (["-h"], ["--help"])  # another command stands behind it
    if checks_only and len(rest) == 1:
        raise UserError("check: write the command behind it, as in colm check train --base B ...")
    rest = rest[1:] if checks_only else rest
    passed_on = rest[1:] if rest[:1] == ["lm_eval"] else []  # another program's flags
    flags = make_parser().parse_args(rest[:1] if passed_on else rest)
    _check_paths(flags)
    flags.passed_on, flags.gin = passed_on, (files, bindings)
    import jax

    from colm_jax import console
    from colm_jax.cli import commands, gin_edge, machines, out
    from colm_jax.parallel import is_first, join, witnessed

    gin_edge.parse(files, bindings)
    if checks_only:
        commands.check(flags)
        return 0
    out.check_flags(flags)
    work = getattr(machines if flags.command in _MACHINES else commands, flags.command)
    several = getattr(flags, "distributed", None) is not None
    if several:
        join(flags.distributed)
    speaks = not several or is_first()  # asked only then: it starts the devices, and some commands need none
    console.errors.quiet = not speaks
    together = several and jax.process_count() > 1
    with (
        witnessed() if several else nullcontext(),
        nullcontext() if together else _heeding_sigterm(),
        out.claimed(flags),
    ):
        result = work(flags)
    if result is not None and speaks:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    sys.stdout.flush()
    return 1 if result is not None and result.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
