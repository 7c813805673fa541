"""Jobs of several processes, such as the hosts of a TPU slice: start-up, barriers, shared files.

Every process runs the same program on the same inputs; arrays are on a mesh over all devices, and files on a shared
file system. Barriers use JAX's coordination service, since device collectives time out.
"""

import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from colm_jax.errors import MachineError, Preempted, Stopped, UserError

T = TypeVar("T")

_BARRIER_TIMEOUT = 7 * 24 * 3600 * 1000  # milliseconds; missing heartbeats reveal a dead process long before
_HEARTBEAT_TIMEOUT = 40  # seconds without a heartbeat from a process, or after its end, until the others give up
_JOIN_TIMEOUT = 300  # seconds in which all processes of a job must join
_NOTICE_DELAY = 10  # seconds of waiting for other processes until a line says so
_barriers, _stop_checks = itertools.count(), itertools.count(1)

# Program of the watchdog: it reads from the process until its end, and prints a line if it received nothing.
_WATCHDOG = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


def join(where: str) -> None:
    """Join a job of several processes. Call this before any other use of JAX.

    Args:
      where: "auto" on Cloud TPU, Slurm, GKE and other clusters that JAX detects, otherwise HOST:PORT,COUNT,NUMBER: the
        address of process 0, the number of processes, and the number of this one.

    Raises:
      UserError: `where` is malformed, or "auto" outside a cluster that JAX detects.
      MachineError: process 0 cannot listen at the address, or cannot be reached.
    """
    manual = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", where)
    if manual is None and where != "auto":
        raise UserError(f"distributed {where}: must be auto or HOST:PORT,COUNT,NUMBER, as in host0:8476,2,0")
    if manual is not None and int(manual[3]) >= int(manual[2]):
        raise UserError(f"distributed {where}: NUMBER must be from 0 to {int(manual[2]) - 1}")
    address, count, number = (None, None, None) if manual is None else (manual[1], int(manual[2]), int(manual[3]))
    notice = f"colm: distributed {where}: waiting for the job's other processes, at most {_JOIN_TIMEOUT} s"
    waiting = threading.Timer(_NOTICE_DELAY, print, [notice], {"file": sys.stderr, "flush": True})
    waiting.start()
    absent = (
        f"colm: distributed {where}: not all processes joined; run the same command on every host, and check that "
        "each can reach process 0"
    )
    try:
        with _watchdog(absent), _joining(where):
            jax.distributed.initialize(
                address,
                count,
                number,
                initialization_timeout=_JOIN_TIMEOUT,
                heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=_HEARTBEAT_TIMEOUT,
            )
    finally:
        waiting.cancel()


@contextmanager
def _joining(where: str) -> Iterator[None]:
    """Convert JAX's errors of joining: no cluster detected, or an address that does not respond."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"distributed {where}: {error} JAX detects no cluster here; use HOST:PORT,COUNT,NUMBER"
        ) from None
    except RuntimeError as error:
        raise MachineError(f"distributed {where}: {error}") from None


def watched() -> AbstractContextManager[None]:
    """Run the block under a watchdog that prints what to do if this process ends early."""
    return _watchdog(
        f"colm: process {jax.process_index()} of {jax.process_count()} ended early: it failed or was killed, or "
        "another process of the job is gone (the lines above may say which); rerun the same command to resume"
    )


@contextmanager
def _watchdog(line: str) -> Iterator[None]:
    """Print `line` if this process ends inside the block, except by an exception that the command line handles.

    A process that is killed, or that JAX aborts because another one is gone, cannot print anything itself. So a small
    second process prints the line if the pipe between them closes without a message.
    """
    command = [sys.executable, "-I", "-S", "-c", _WATCHDOG, line]
    # In its own session, so that a signal to the process group does not reach it.
    watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    except (UserError, MachineError, Preempted, Stopped, KeyboardInterrupt):
        watchdog.communicate(b"done")
        raise
    watchdog.communicate(b"done")


def is_first() -> bool:
    """Return whether this is the first process, which writes the shared files."""
    return jax.process_index() == 0


def barrier() -> None:
    """Wait until every process has called this function as often as this one."""
    meet = multihost.get_barrier_sync_fn() if jax.process_count() > 1 else None
    if meet is not None:
        meet(key=f"colm-{next(_barriers)}", timeout_ms=_BARRIER_TIMEOUT)


def asked_to_stop() -> bool:
    """Return whether SIGTERM has reached any of several processes; all must call this equally often.

    All processes get the same result: JAX's coordination service agrees on one of the calls after the signal. With a
    single process the result is always False; there a Python signal handler is used.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_stop_checks))


def heed_stop() -> None:
    """Raise Stopped if `asked_to_stop`; for places where nothing needs to be saved.

    Raises:
      Stopped: in all processes.
    """
    if asked_to_stop():
        raise Stopped


def on_first(work: Callable[[], T]) -> T:
    """Call `work` in the first process only and return its result, a JSON value, in all of them.

    Raises:
      UserError, MachineError: in every process, if `work` raises it.
      RuntimeError: in the other processes, if `work` raises any other exception.
    """
    if jax.process_count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    if is_first():
        try:
            outcome["result"] = work()
        except UserError as error:
            outcome["user_error"] = str(error)
        except MachineError as error:
            outcome["machine_error"] = str(error)
        except Exception as error:
            failure, outcome["failed"] = error, f"{type(error).__name__}: {error}"
    barrier()
    text = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    outcome = json.loads(text.tobytes())
    if "user_error" in outcome:
        raise UserError(outcome["user_error"])
    if "machine_error" in outcome:
        raise MachineError(outcome["machine_error"])
    if "failed" in outcome:
        raise failure or RuntimeError(f"the first process failed: {outcome['failed']}")
    return outcome["result"]


def to_host(tree: Any) -> Any:
    """Copy a tree of arrays to this host's memory, gathering parts from other processes; all must call this."""

    def whole(array: Any) -> Any:
        here = not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated
        return array if here else multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))
