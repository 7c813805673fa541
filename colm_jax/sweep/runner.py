"""Runs the trials of a sweep: each in its own process, several at a time; finished trials are not run again."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colm_jax.checkpoints.directory import resolve
from colm_jax.errors import UserError
from colm_jax.pipeline.stage import hash_model
from colm_jax.settings.run import RunConfig
from colm_jax.settings.sweep import Sweep
from colm_jax.storage import locked, path_of, read_json, sha256_of, write_json
from colm_jax.sweep.trials import Trial

RESULT, LOG, STORE = "trial.json", "log.txt", "stages"
_LOCK = ".trial.lock"  # in the trial's directory; held by the sweep or the cluster job that runs it
_INVALID_INPUT = 2  # exit status of a run whose input is invalid
_MEMORY_SHARE = 0.8  # share of the free memory that all trials together may use
_POLL = 0.1  # seconds


@dataclass
class TrialState:
    """A trial and how far it is."""

    trial: Trial
    directory: Path
    key: str  # hash of everything that decides its result
    command: Sequence[str]
    status: str = "waiting"  # running, done, failed
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""  # of a failed trial: its exit status and the last line of its log

    @property
    def result(self) -> dict[str, Any] | None:
        """The finished trial's trial.json; None if it is not finished, or was for another key."""
        path = self.directory / RESULT
        found = read_json(path) if path.exists() else {}
        return found if found.get("key") == self.key else None

    @property
    def last_line(self) -> str:
        """The last line of its log."""
        path = self.directory / LOG
        lines = _last_lines(path) if path.exists() else []
        return lines[-1] if lines else ""


def _last_lines(path: Path) -> list[str]:
    """Return the last lines of a file, without empty ones."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        text = file.read().decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


class InputHashes:
    """Content hashes of what trials read; what several trials read is hashed once."""

    def __init__(self):
        self._found: dict[Path, str] = {}

    def of(self, config: RunConfig) -> dict[str, str]:
        """Return the hash of each local model and data file of a run, by path."""
        models = [path_of(model) for model in (config.base, *config.experts)]
        files = [path_of(file) for file in (config.data, config.dev, config.test) if file is not None]
        found = {str(path): self._hash(path, _hash_model) for path in models if path.exists()}
        return found | {str(path): self._hash(path, sha256_of) for path in files if path.is_file()}

    def _hash(self, path: Path, digest: Callable[[Path], str]) -> str:
        if path not in self._found:
            self._found[path] = digest(path)
        return self._found[path]


def _hash_model(path: Path) -> str:
    """Return the content hash of a local model: a directory, or a GGUF file."""
    return hash_model(resolve(path))


def trial_key(settings: str, inputs: Mapping[str, str]) -> str:
    """Return the hash of a trial's settings (as a gin file) and of what it reads (see `InputHashes`)."""
    return hashlib.sha256(json.dumps([settings, inputs], sort_keys=True).encode()).hexdigest()


def trial_command(trial: Trial, files: Sequence[str], bindings: Sequence[str], out: Path) -> list[str]:
    """Return the process arguments of the `colm run` of a trial.

    Args:
      trial: the trial.
      files: gin files of the sweep.
      bindings: NAME=VALUE of the sweep.
      out: directory of the sweep.
    """
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
    """The process of a running trial."""

    state: TrialState
    process: subprocess.Popen
    begun: float
    held: ExitStack  # the trial's lock


def run_trials(states: Sequence[TrialState], sweep: Sweep, on_change: Callable[[], None]) -> None:
    """Run the trials that are not done; their states are updated in place.

    A trial with another exit status than 0 is retried, unless its input is invalid. One that another process runs
    counts as failed, and its files are left alone. When this process is interrupted, running trials get SIGTERM
    (training saves its step) and are waited for.

    Args:
      states: the trials.
      sweep: how many run at a time, and how often one is retried.
      on_change: called after changes, and several times a second.
    """
    waiting = []
    for state in states:
        if state.result is not None:
            state.status = "done"
            state.seconds = state.result["seconds"]
        else:
            waiting.append(state)
    peaks = [found["peak_gib"] for state in states if (found := state.result)]
    memory = _MEMORY_SHARE * _free_gib()
    running: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < _places(sweep, peaks, memory):
                running += _start(waiting.pop(0))
            on_change()
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
                elif worker.state.status == "done":
                    peaks.append(peak)
            time.sleep(_POLL)
    finally:
        for worker in running:
            worker.process.terminate()
        for worker in running:
            with worker.held:
                worker.process.wait()
            worker.state.status = "waiting"
        on_change()


def _start(state: TrialState) -> list[_Worker]:
    """Start a trial; return no worker if another process runs it."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(state.directory / _LOCK, str(state.directory)))
        except UserError as error:
            state.status, state.error = "failed", str(error)
            return []
        (state.directory / RESULT).unlink(missing_ok=True)
        state.status, state.attempts = "running", state.attempts + 1
        environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
        with (state.directory / LOG).open("wb") as log:
            process = subprocess.Popen(state.command, stdout=log, stderr=log, env=environment)
        return [_Worker(state, process, time.monotonic(), held.pop_all())]


def _finish(worker: _Worker, code: int, peak: float, retries: int) -> bool:
    """Record how a trial ended; return whether to retry it."""
    state = worker.state
    state.seconds = time.monotonic() - worker.begun
    evaluation = state.directory / "evaluate" / "evaluation.json"
    if code == 0 and evaluation.exists():
        facts = {"key": state.key, "axes": dict(state.trial.axes), "seconds": round(state.seconds, 1)}
        write_json(state.directory / RESULT, {**facts, "peak_gib": round(peak, 3), "evaluation": read_json(evaluation)})
        state.status = "done"
        return False
    lines = _last_lines(state.directory / LOG)
    messages = [line for line in lines if line.startswith("colm: ")] or lines or ["(no output)"]
    ending = f"signal {-code}" if code < 0 else f"exit status {code}"
    state.error = f"{ending}: {messages[-1]}" if code else "ended without an evaluation; it needs a dev or test file"
    if code not in (0, _INVALID_INPUT) and state.attempts <= retries:
        state.status = "waiting"
        return True
    state.status = "failed"
    return False


def _places(sweep: Sweep, peaks: Sequence[float], memory: float) -> int:
    """Return how many trials may run at a time: those asked for, limited by `memory` in GiB and by their peaks."""
    wanted = sweep.parallel or (1 if _accelerator() else max(1, (os.cpu_count() or 1) // 2))
    if sweep.memory_gib is None and not peaks:
        return 1  # the first trial measures what one needs
    need = max(peaks) if sweep.memory_gib is None else sweep.memory_gib
    return max(1, min(wanted, int(memory / need)))


def _accelerator() -> bool:
    """Return whether there is a TPU or NVIDIA GPU, which one process occupies; found without starting JAX."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    devices = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0")
    return any(Path(device).exists() for device in devices)


def _free_gib() -> float:
    """Return the memory available to new processes, in GiB; half of all if the system does not report it."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31
