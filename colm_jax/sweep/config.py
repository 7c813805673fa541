"""Which settings a sweep tries, and how its trials are run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from colm_jax.checks import check_number, check_seed, check_whole
from colm_jax.errors import UserError

RANDOM = ("uniform", "log_uniform", "integer", "choice")


@dataclass(frozen=True)
class Sweep:
    """Trials: every combination of a value of each binding in `grid`, a point of `points`, and a random sample.

    A binding is a setting, as in "Training.learning_rate", or a gin macro; "gin_file" stands for a file that the trial
    reads behind the sweep's own.
    """

    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    points: tuple[Mapping[str, Any], ...] = ()  # bindings that go together; an entry "name" names the point
    # Binding -> ("uniform", low, high), ("log_uniform", low, high), ("integer", low, high) or ("choice", a, b, ...).
    random: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    samples: int = 0  # draws of `random`
    seed: int = 0  # of the draws; sample i is the same however many there are
    repeats: tuple[
        str, ...
    ] = ()  # bindings, or "point", that only repeat a trial, as seeds do: means are taken over them
    metric: str | None = None  # of the answers; None: "accuracy" with a task, else "team", nats per token of the team
    minimise: bool | None = None  # None: for nats per token
    parallel: int | None = None  # trials at a time; None: half the cores, one where there is an accelerator
    memory_gib: float | None = None  # of one trial; None: as the first one needed, which then runs alone
    retries: int = 1  # of a trial that crashed; one that refused its input is not tried again

    def __post_init__(self):
        """Validates the settings."""
        checked: dict[str, Any] = {"seed": check_seed("Sweep.seed", self.seed)}
        checked |= {name: check_whole(f"Sweep.{name}", getattr(self, name)) for name in ("samples", "retries")}
        if self.parallel is not None:
            checked["parallel"] = check_whole("Sweep.parallel", self.parallel, 1)
        if self.memory_gib is not None:
            checked["memory_gib"] = check_number("Sweep.memory_gib", self.memory_gib, above=0)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not self.grid and not self.points and not self.random:
            raise UserError("Sweep: nothing is swept; bind Sweep.grid, Sweep.points or Sweep.random")
        for name, values in self.grid.items():
            if not values:
                raise UserError(f"Sweep.grid: {name} has no values")
        for name, drawn in self.random.items():
            _check_random(name, drawn)
        if bool(self.random) != (self.samples > 0):
            raise UserError(f"Sweep.samples {self.samples}: at least 1 with Sweep.random, and 0 without")
        axes = [*self.grid, *self.random, *(["point"] if self.points else [])]
        twice = [name for name in {*self.grid, *self.random} if axes.count(name) > 1]
        twice += [name for name in {*self.grid, *self.random} if any(name in point for point in self.points)]
        if twice:
            raise UserError(f"Sweep: {twice[0]} is swept in two ways")
        for name in self.repeats:
            if name not in axes:
                raise UserError(f"Sweep.repeats: {name} is not swept; there are {', '.join(axes)}")


def _check_random(name: str, drawn: tuple[Any, ...]) -> None:
    where = f"Sweep.random: {name} = {drawn!r}"
    if not drawn or drawn[0] not in RANDOM:
        raise UserError(f"{where}: begins with one of {', '.join(RANDOM)}")
    if drawn[0] == "choice":
        if len(drawn) < 2:
            raise UserError(f"{where}: choice needs values")
        return
    numbers = drawn[1:]
    if len(numbers) != 2 or not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise UserError(f"{where}: {drawn[0]} needs its lowest and its highest number")
    if not numbers[0] < numbers[1] or (drawn[0] == "log_uniform" and numbers[0] <= 0):
        raise UserError(f"{where}: the lowest must be below the highest, and above 0 for log_uniform")
