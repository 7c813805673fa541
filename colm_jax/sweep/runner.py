"""Runs a sweep's trials, each in a process of its own, several at a time; what is done is not done again."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colm_jax.errors import UserError
from colm_jax.settings.sweep import Sweep
from colm_jax.storage import locked, read_json, write_json
from colm_jax.sweep.trials import Trial

RESULT, LOG, STORE = "trial.json", "log.txt", "stages"
_LOCK = ".trial.lock"  # in its directory: of the sweep, or the job of a cluster, that runs the trial
_REFUSED = 2  # exit status of a run that found its input wrong
_SPARE = 0.8  # of the free memory, what trials may take together
_POLL = 0.1  # seconds


@dataclass
class State:
    """Where a trial stands."""

    trial: Trial
    directory: Path
    key: str  # hash of all that decides its result
    command: Sequence[str]
    state: str = "waiting"  # running, done, failed
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""  # the last line of a failed one's log

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished trial wrote; None where it is not finished, or something has changed since."""
        path = self.directory / RESULT
        found = read_json(path) if path.exists() else {}
        return found if found.get("key") == self.key else None

    @property
    def doing(self) -> str:
        """The last line of its log."""
        path = self.directory / LOG
        lines = _last_lines(path) if path.exists() else []
        return lines[-1] if lines else ""


def _last_lines(path: Path) -> list[str]:
    """Lines near a file's end, without empty ones."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        text = file.read().decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def trial_key(settings: str, inputs: dict[str, str]) -> str:
    """Hash of a trial's settings (as a gin file) and of what it reads (name -> content hash)."""
    return hashlib.sha256(json.dumps([settings, inputs], sort_keys=True).encode()).hexdigest()


def trial_command(trial: Trial, files: Sequence[str], bindings: Sequence[str], out: Path) -> list[str]:
    """The `colm run` that a trial is, as a process's arguments."""
    gin = [
        *(f"--gin_file={file}" for file in (*files, *trial.files)),
        *(f"--gin.{b}" for b in (*bindings, *trial.bindings)),
    ]
    return [
        sys.executable,
        "-m",
        "colm_jax.cli.main",
        "run",
        *gin,
        "--out",
        str(out / "trials" / trial.name),
        "--store",
        str(out / STORE),
    ]


@dataclass
class _Worker:
    """A running trial."""

    state: State
    process: subprocess.Popen
    begun: float
    held: ExitStack  # the trial's lock


def run_trials(states: Sequence[State], sweep: Sweep, told: Callable[[], None]) -> None:
    """Runs what is not done; `told` is called when something changed, and a few times a second.

    A trial that ends with another status than 0 is tried again, unless it refused its input; one that another process
    runs has failed here, and nothing of it is touched. When this process is
    interrupted, running trials are asked to stop (training saves its step) and waited for.
    """
    waiting = []
    for state in states:
        if state.result is not None:
            state.state = "done"
            state.seconds = state.result["seconds"]
        else:
            waiting.append(state)
    peaks = [found["peak_gib"] for state in states if (found := state.result)]
    memory = _SPARE * _free_gib()
    running: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < _places(sweep, peaks, memory):
                running += _start(waiting.pop(0))
            told()
            for worker in list(running):
                pid, status, usage = os.wait4(worker.process.pid, os.WNOHANG)
                if pid == 0:
                    continue
                running.remove(worker)
                code = worker.process.returncode = os.waitstatus_to_exitcode(status)
                peak = usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
                with worker.held:
                    again = _finish(worker, code, peak, sweep.retries)
                if again:
                    waiting.append(worker.state)
                elif worker.state.state == "done":
                    peaks.append(peak)
            time.sleep(_POLL)
    finally:
        for worker in running:
            worker.process.terminate()
        for worker in running:
            with worker.held:
                worker.process.wait()
            worker.state.state = "waiting"
        told()


def _start(state: State) -> list[_Worker]:
    """Starts a trial; none where another process runs it."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(state.directory / _LOCK, str(state.directory)))
        except UserError as error:
            state.state, state.error = "failed", str(error)
            return []
        (state.directory / RESULT).unlink(missing_ok=True)
        state.state, state.attempts = "running", state.attempts + 1
        environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
        with (state.directory / LOG).open("wb") as log:
            process = subprocess.Popen(state.command, stdout=log, stderr=log, env=environment)
        return [_Worker(state, process, time.monotonic(), held.pop_all())]


def _finish(worker: _Worker, code: int, peak: float, retries: int) -> bool:
    """Writes down how a trial ended. Returns whether it is to be tried again."""
    state = worker.state
    state.seconds = time.monotonic() - worker.begun
    evaluation = state.directory / "evaluate" / "evaluation.json"
    if code == 0 and evaluation.exists():
        facts = {"key": state.key, "axes": dict(state.trial.axes), "seconds": round(state.seconds, 1)}
        write_json(state.directory / RESULT, {**facts, "peak_gib": round(peak, 3), "evaluation": read_json(evaluation)})
        state.state = "done"
        return False
    lines = _last_lines(state.directory / LOG)
    said = [line for line in lines if line.startswith("colm: ")] or lines or ["(no output)"]
    ending = f"signal {-code}" if code < 0 else f"exit status {code}"
    state.error = f"{ending}: {said[-1]}" if code else "ended without an evaluation; it needs a dev or test file"
    if code not in (0, _REFUSED) and state.attempts <= retries:
        state.state = "waiting"
        return True
    state.state = "failed"
    return False


def _places(sweep: Sweep, peaks: Sequence[float], memory: float) -> int:
    """How many trials may run at a time: as many as are asked for, and as `memory` (GiB) holds."""
    wanted = sweep.parallel or (1 if _accelerator() else max(1, (os.cpu_count() or 1) // 2))
    if sweep.memory_gib is None and not peaks:
        return 1  # the first one shows what a trial needs
    need = max(peaks) if sweep.memory_gib is None else sweep.memory_gib
    return max(1, min(wanted, int(memory / need)))


def _accelerator() -> bool:
    """Whether a TPU or an NVIDIA GPU is there, of which one process takes all; asked without starting JAX."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    devices = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0")
    return any(Path(device).exists() for device in devices)


def _free_gib() -> float:
    """Memory that new processes may take, in GiB; where the system does not say, half of all."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31
