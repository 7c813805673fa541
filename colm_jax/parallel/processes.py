"""Several processes of one job (the hosts of a TPU slice, say): how they meet, wait for each other, and share files.

Every process runs the same program on the same inputs; arrays lie on a mesh over all of their devices, and files on a
file system that all of them see. Waiting is done by JAX's coordination service: collectives of the devices time out.
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

_WAIT = 7 * 24 * 3600 * 1000  # milliseconds; a process that has died is noticed by its missing heartbeat long before
_PATIENCE = 40  # seconds without a sign of life from one process, or behind its end, until the others give up
_ARRIVAL = 300  # seconds until all processes of a job have to have come
_SILENCE = 10  # seconds of waiting for the others behind which a line says so
_names, _askings = itertools.count(), itertools.count(1)

# What the witness of a process runs: it reads what that one says before it ends, and speaks where it said nothing.
_WITNESS = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


def join(where: str) -> None:
    """Makes this process one of several; before anything else is done with JAX.

    Args:
      where: "auto" on Cloud TPU, Slurm, GKE and other clusters that JAX knows, else HOST:PORT,COUNT,NUMBER: where
        process 0 listens, how many processes there are, and which of them this is.

    Raises:
      UserError: `where` is neither, or no cluster that JAX knows.
      MachineError: process 0 cannot listen there, or cannot be reached.
    """
    manual = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", where)
    if manual is None and where != "auto":
        raise UserError(f"--distributed {where}: write auto, or HOST:PORT,COUNT,NUMBER, as in host0:8476,2,0")
    if manual is not None and int(manual[3]) >= int(manual[2]):
        raise UserError(f"--distributed {where}: processes are numbered from 0 to {int(manual[2]) - 1}")
    address, count, number = (None, None, None) if manual is None else (manual[1], int(manual[2]), int(manual[3]))
    said = f"colm: --distributed {where}: waits for the job's other processes, {_ARRIVAL} s at most"
    waiting = threading.Timer(_SILENCE, print, [said], {"file": sys.stderr, "flush": True})
    waiting.start()
    absent = (
        f"colm: --distributed {where}: not all came; the same command has to run on every host, and reach process 0"
    )
    try:
        with _witness(absent), _said_of(where):
            jax.distributed.initialize(
                address,
                count,
                number,
                initialization_timeout=_ARRIVAL,
                heartbeat_timeout_seconds=_PATIENCE,
                shutdown_timeout_seconds=_PATIENCE,
            )
    finally:
        waiting.cancel()


@contextmanager
def _said_of(where: str) -> Iterator[None]:
    """What JAX says where processes cannot meet: no cluster that it knows, or an address that does not answer."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            f"--distributed {where}: {error} This is no cluster that JAX knows; write HOST:PORT,COUNT,NUMBER"
        ) from None
    except RuntimeError as error:
        raise MachineError(f"--distributed {where}: {error}") from None


def witnessed() -> AbstractContextManager[None]:
    """Around the work of one of several processes: where it ends before its time, its last line says what to do."""
    return _witness(
        f"colm: process {jax.process_index()} of {jax.process_count()} has ended before its work was done: it failed "
        "or was killed, or another process of the job is gone (the lines above may say which); rerun the same "
        "command to resume from what is saved"
    )


@contextmanager
def _witness(line: str) -> Iterator[None]:
    """Has `line` said where this process ends within, but for an exception that the command line answers.

    A process that is killed cannot say anything, nor one that JAX aborts since another one is gone. So a small process
    stands beside it, and speaks where the pipe between them ends without a word.
    """
    command = [sys.executable, "-I", "-S", "-c", _WITNESS, line]
    # In a session of its own: a signal to the whole group does not reach it.
    witness = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    except (UserError, MachineError, Preempted, Stopped, KeyboardInterrupt):
        witness.communicate(b"done")
        raise
    witness.communicate(b"done")


def is_first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def barrier() -> None:
    """Returns when every process has called it as often as this one has."""
    meet = multihost.get_barrier_sync_fn() if jax.process_count() > 1 else None
    if meet is not None:
        meet(key=f"colm-{next(_names)}", timeout_ms=_WAIT)


def asked_to_stop() -> bool:
    """Whether SIGTERM has reached any of several processes; all have to ask equally often, and get the same answer.

    JAX's coordination service agrees on one asking, which is some behind the signal. A single process is always told
    no: there a handler of Python's answers the signal.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_askings))


def heed_stop() -> None:
    """`asked_to_stop`, where nothing is left to be saved.

    Raises:
      Stopped: in all of several processes.
    """
    if asked_to_stop():
        raise Stopped


def on_first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, which alone does it: something that JSON holds. All wait for it.

    Raises:
      UserError, MachineError: in every process, where `work` raised it.
      RuntimeError: in the others, where it raised anything else.
    """
    if jax.process_count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    if is_first():
        try:
            outcome["result"] = work()
        except UserError as error:
            outcome["refused"] = str(error)
        except MachineError as error:
            outcome["hindered"] = str(error)
        except Exception as error:
            failure, outcome["failed"] = error, f"{type(error).__name__}: {error}"
    barrier()
    text = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    outcome = json.loads(text.tobytes())
    if "refused" in outcome:
        raise UserError(outcome["refused"])
    if "hindered" in outcome:
        raise MachineError(outcome["hindered"])
    if "failed" in outcome:
        raise failure or RuntimeError(f"the first process failed: {outcome['failed']}")
    return outcome["result"]


def to_host(tree: Any) -> Any:
    """A tree of arrays in this host's memory, also where other processes hold parts of them; all have to ask."""

    def whole(array: Any) -> Any:
        here = not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated
        return array if here else multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))
