"""The trials of a sweep: the bindings and the name of each."""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax.errors import UserError
from colm_jax.settings.sweep import Sweep
from colm_jax.storage import path_of

FILE, POINT = "gin_file", "point"
_LONGEST = 100  # characters of a name; a longer one is cut and ends in a hash


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str  # of its directory, made of its bindings, so that it stays the same when the sweep grows
    axes: Mapping[str, Any]  # where it differs from the others: binding, or "point", -> value
    files: tuple[Path, ...]  # gin files, read after the sweep's
    bindings: tuple[str, ...]  # NAME=VALUE, which override all others


def make_trials(sweep: Sweep, folders: Sequence[Path]) -> list[Trial]:
    """Return every trial, in order: points, then the grid (its last binding varies fastest), then samples.

    Args:
      sweep: the swept settings.
      folders: where relative names of gin files are looked up; the working directory comes last.

    Raises:
      UserError: a missing gin file, or two trials with the same bindings.
    """
    points = [(_point_name(point, i), point) for i, point in enumerate(sweep.points)] or [("", {})]
    samples: Sequence[Mapping[str, Any]] = [_draw(sweep, i) for i in range(sweep.samples)] or [{}]
    trials = []
    for (label, point), *values in itertools.product(points, *sweep.grid.values(), samples):
        sample = values.pop()
        swept = dict(zip(sweep.grid, values)) | sample
        bound = {key: value for key, value in point.items() if key != "name"} | swept
        axes = ({POINT: label} if sweep.points else {}) | swept
        files = tuple(_find(bound[FILE], folders) for _ in range(FILE in bound))
        bindings = tuple(f"{key}={value!r}" for key, value in bound.items() if key != FILE)
        trials.append(Trial(_name(axes), axes, files, bindings))
    names = [trial.name for trial in trials]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Sweep: two trials are the same: {twice}")
    return trials


def shown(key: str, value: Any) -> str:
    """Return a value of an axis as short text: the stem of a file."""
    if key == FILE:
        return Path(value).stem
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _point_name(point: Mapping[str, Any], number: int) -> str:
    return str(point.get("name", number))


def _name(axes: Mapping[str, Any]) -> str:
    """Return a directory's name, made of the trial's bindings."""
    parts = [
        value if key in (FILE, POINT) else f"{key.rpartition('.')[2]}={value}"
        for key, value in ((key, shown(key, value)) for key, value in axes.items())
    ]
    name = re.sub(r"[^\w=.,+-]+", "_", ",".join(parts)).strip("._") or "trial"
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(repr(dict(axes)).encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - 9]}-{digest}"


def _draw(sweep: Sweep, number: int) -> dict[str, Any]:
    """Draw sample `number` of the random bindings."""
    rng = np.random.default_rng((sweep.seed, number))
    found: dict[str, Any] = {}
    for name, (kind, *values) in sweep.random.items():
        if kind == "choice":
            found[name] = values[int(rng.integers(len(values)))]
        elif kind == "integer":
            found[name] = int(rng.integers(values[0], values[1] + 1))
        else:
            low, high = np.log(values) if kind == "log_uniform" else values
            drawn = rng.uniform(low, high)
            found[name] = float(f"{np.exp(drawn) if kind == 'log_uniform' else drawn:.4g}")
    return found


def _find(name: str, folders: Sequence[Path]) -> Path:
    tried = [*(folder / name for folder in folders), path_of(name)]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise UserError(f"Sweep: gin_file {name!r}: no such file, here or in {', '.join(map(str, folders))}")
    return found
