"""Settings of a sweep: which settings it varies, and how its trials run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colm_jax.errors import UserError
from colm_jax.settings.fields import seed_setting, setting, validate

RANDOM = ("uniform", "log_uniform", "integer", "choice")


@dataclass(frozen=True)
class Sweep:
    """Trials: every combination of a value of each binding in `grid`, a point of `points`, and a random sample.

    A binding is a setting, as in "Training.learning_rate", or a gin macro; "gin_file" is a file that the trial
    reads after the sweep's own.
    """

    grid: Mapping[str, tuple[Any, ...]] = setting(
        factory=dict, help="binding -> values; every combination of them is a trial"
    )
    points: tuple[Mapping[str, Any], ...] = setting((), help="bindings that go together; an entry name names the point")
    random: Mapping[str, tuple[Any, ...]] = setting(
        factory=dict,
        help='binding -> ("uniform", low, high), ("log_uniform", low, high), ("integer", low, high) or ("choice", a, '
        "b, ...)",
    )
    samples: int = setting(0, help="draws of random", least=0)
    seed: int = seed_setting("seed of the draws; sample i is the same however many there are")
    repeats: tuple[str, ...] = setting(
        (), help='bindings, or "point", that only repeat a trial, as seeds do: results are averaged over them'
    )
    metric: str | None = setting(
        None, help="of the answers; unset: accuracy with a task, else team, nats per token of the team"
    )
    minimise: bool | None = setting(None, help="whether less is better; unset: for nats per token")
    parallel: int | None = setting(
        None, help="trials at a time, if memory allows; unset: half the cores, 1 on an accelerator", least=1
    )
    memory_gib: float | None = setting(
        None, help="memory of one trial; unset: as the first one needed, which then runs alone", above=0
    )
    retries: int = setting(1, help="runs again of a trial that crashed; not of one that refused its input", least=0)

    def __post_init__(self):
        """Validate the settings."""
        validate(self, "Sweep.")
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
