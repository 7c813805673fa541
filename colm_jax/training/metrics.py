"""What a training run leaves of each step: metrics.jsonl, and times and TensorBoard events under logs/.

metrics.jsonl holds nothing that depends on the machine's speed, so that a run that was stopped and went on leaves the
same file. Times are in logs/speed.jsonl, a line a step, of every start.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colm_jax.errors import UserError
from colm_jax.storage import GrowingFile, publish, working_directory


class Log:
    """The files of one start, open until `close`."""

    def __init__(self, directory: Path, done: int):
        """Opens the files of `directory`; of metrics.jsonl the first `done` steps are kept, later ones come again."""
        self._logs, self._open = directory / "logs", ExitStack()
        # TensorBoard and the profiler write to disk only: what is in a bucket follows with each checkpoint.
        self.folder = self._open.enter_context(working_directory(self._logs))
        self._sent: dict[str, float] = {}
        self._open.callback(publish, self.folder, self._logs, sent=self._sent)
        self.is_writer = jax.process_index() == 0
        if self.is_writer:
            self._exact = GrowingFile(directory / "metrics.jsonl", first_lines(directory / "metrics.jsonl", done))
            self._speed = GrowingFile(self._logs / "speed.jsonl")
            from colm_jax.training.board import Board  # which imports PyTorch where it is installed: seconds

            self._board = Board(self.folder, done + 1)
            for file in (self._exact, self._speed, self._board):
                self._open.callback(file.close)

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def flush(self) -> None:
        """Flush to durable storage, before a checkpoint relies on it."""
        if self.is_writer:
            self._exact.flush()
            self._speed.flush()
            self._board.flush()
            publish(self.folder, self._logs, sent=self._sent)

    def write(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Write a step's line to each file; after a kill, metrics.jsonl holds whole lines only."""
        if not self.is_writer:
            return
        for file, line in ((self._exact, values), (self._speed, speed)):
            file.write(json.dumps({"step": step, **line}) + "\n")
        self._board.write(step, {**values, **speed})


def first_lines(path: Path, count: int) -> str:
    """Return the first `count` lines of a file; nothing where there is none."""
    return "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:count]) if path.exists() else ""


class Stopwatch:
    """Times of steps: the whole, and what of it was waiting for data."""

    def __init__(self) -> None:
        self._last, self._data = time.perf_counter(), 0.0

    def next(self, batches: Any) -> Any:
        """Return the next batch; the wait is data time."""
        begun = time.perf_counter()
        batch = next(batches)
        self._data += time.perf_counter() - begun
        return batch

    def lap(self, positions: float) -> dict[str, float]:
        """Return seconds, tokens (that count in the loss) a second and the data-waiting share since the last lap."""
        now = time.perf_counter()
        seconds, data = now - self._last, self._data
        self._last, self._data = now, 0.0
        return {"seconds": seconds, "tokens_per_second": positions / seconds, "data_share": data / seconds}


def check_finite(values: Mapping[str, float], step: int, lines: Callable[[], Any], last_good: int | None) -> None:
    """Raise UserError if loss or gradient is not finite, naming step, examples and the checkpoint to resume from.

    `lines` returns for each row of the batch the lines of its examples in the data.
    """
    if np.isfinite(values["loss"]) and np.isfinite(values["gradient_norm"]):
        return
    examples = [number for row in lines() for number in row]
    more = "" if len(examples) <= 16 else f" and {len(examples) - 16} more"
    good = "there is no checkpoint yet" if last_good is None else f"the last good checkpoint is step {last_good}"
    raise UserError(
        f"training: loss {values['loss']}, gradient norm {values['gradient_norm']} at step {step}, examples "
        f"{examples[:16]}{more} (their lines in the data); {good}; lower the learning rate or look at these texts"
    )
