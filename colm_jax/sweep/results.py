"""Results of a sweep: a row for each trial and strategy, means over repeats, comparison with the best, plots."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colm_jax.evaluation.compare import Difference, paired_bootstrap
from colm_jax.pipeline.stages.answers import GRADES
from colm_jax.report.contents import Bars, Cell, Curve, Plot, Report, Table
from colm_jax.settings.sweep import Sweep
from colm_jax.storage import read_json
from colm_jax.sweep.runner import TrialState
from colm_jax.sweep.trials import FILE, shown

_TEXT = "text"  # in place of the strategy if there is no task


@dataclass(frozen=True)
class Row:
    """The measures of one strategy in one trial."""

    state: TrialState
    strategy: str
    measures: dict[str, float]
    grades: tuple[float, ...]  # of each answer; empty without a task


@dataclass(frozen=True)
class Group:
    """Rows that differ only in repeated bindings."""

    axes: dict[str, Any]  # without the repeated ones
    strategy: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The values of its axes, as text."""
        parts = [
            shown(key, value) if key == FILE else f"{key.rpartition('.')[2]} {shown(key, value)}"
            for key, value in self.axes.items()
        ]
        return ", ".join([*parts, *([] if self.strategy == _TEXT else [self.strategy])])

    def mean(self, measure: str) -> float:
        """Return the mean of a measure over the repeats."""
        return statistics.fmean(row.measures[measure] for row in self.rows)

    def spread(self, measure: str) -> float | None:
        """Return the standard deviation of a measure over the repeats; None for fewer than two."""
        values = [row.measures[measure] for row in self.rows]
        return statistics.stdev(values) if len(values) > 1 else None


class Results:
    """The finished trials of a sweep."""

    def __init__(self, states: Sequence[TrialState], sweep: Sweep):
        """Read what the trials wrote."""
        self.states, self.sweep = states, sweep
        self.rows = [row for state in states for row in _rows(state)]
        has_task = any(row.strategy != _TEXT for row in self.rows)
        self.metric = sweep.metric or ("accuracy" if has_task else "team")
        self.minimise = (not has_task) if sweep.minimise is None else sweep.minimise
        self.axes = tuple(states[0].trial.axes)

    def groups(self) -> list[Group]:
        """Return trials and strategies with repeats grouped, the best first; those without the metric are left out."""
        found: dict[Any, list[Row]] = {}
        for row in self.rows:
            if self.metric in row.measures:
                axes = {key: value for key, value in row.state.trial.axes.items() if key not in self.sweep.repeats}
                found.setdefault((repr(axes), row.strategy), []).append(row)
        groups = []
        for (_, strategy), rows in found.items():
            axes = {key: value for key, value in rows[0].state.trial.axes.items() if key not in self.sweep.repeats}
            groups.append(Group(axes, strategy, tuple(rows)))
        return sorted(groups, key=lambda group: group.mean(self.metric), reverse=not self.minimise)

    def difference(self, group: Group, best: Group) -> Difference | None:
        """Compare the best group with another, answer by answer over all repeats; None if they cannot be paired."""
        if self.metric != "accuracy" or group is best:
            return None
        first, second = ([grade for row in each.rows for grade in row.grades] for each in (best, group))
        return paired_bootstrap(first, second) if first and len(first) == len(second) else None

    def csv(self) -> str:
        """Return results.csv: a line for each trial and strategy; failed and waiting trials have a line too."""
        measures = sorted({name for row in self.rows for name in row.measures})
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", *self.axes, "strategy", *measures, "seconds"])
        for state in self.states:
            own = [row for row in self.rows if row.state is state]
            axes = [_plain(value) for value in state.trial.axes.values()]
            for row in own:
                values = [row.measures.get(name, "") for name in measures]
                writer.writerow([state.trial.name, state.status, *axes, row.strategy, *values, round(state.seconds, 1)])
            if not own:
                writer.writerow([state.trial.name, state.status, *axes, "", *[""] * len(measures), ""])
        return file.getvalue()

    def report(self, title: str) -> Report:
        """Return tables, and a plot for each swept binding."""
        done, failed = ([s for s in self.states if s.status == status] for status in ("done", "failed"))
        facts = [
            ("trials", f"{len(self.states)}: {len(done)} done, {len(failed)} failed"),
            ("metric", f"{self.metric}, {'lower' if self.minimise else 'higher'} is better"),
        ]
        groups = self.groups()
        if groups:
            facts.append(("best", f"{groups[0].name}: {groups[0].mean(self.metric):.4f}"))
        tables = [self._table(groups)] if groups else []
        if failed:
            rows = tuple((state.trial.name, state.attempts, state.error) for state in failed)
            tables.append(Table("Failed", ("trial", "attempts", "why"), rows))
        return Report(
            title=title,
            facts=tuple(facts),
            tables=tuple(tables),
            curves=tuple(plot for axis in self.axes if (plot := self._plot(axis)) is not None),
            answers=(),
            writers=("base",),
        )

    def _table(self, groups: Sequence[Group]) -> Table:
        kept = [axis for axis in self.axes if axis not in self.sweep.repeats]
        repeated = any(len(group.rows) > 1 for group in groups)
        others = [name for name in ("deferral_rate", "expert_calls") if all(name in r.measures for r in self.rows)]
        others = [name for name in others if name != self.metric]
        columns = [*kept, "strategy", self.metric, *(["± sd", "repeats"] if repeated else []), *others]
        rows: list[tuple[Cell, ...]] = []
        differences = [self.difference(group, groups[0]) for group in groups]
        for group, difference in zip(groups, differences):
            spread = group.spread(self.metric)
            again: list[Cell] = [None if spread is None else round(spread, 4), len(group.rows)] if repeated else []
            values: list[Cell] = [round(group.mean(name), 4) for name in others]
            names = [shown(axis, group.axes[axis]) for axis in kept]
            rows.append((*names, group.strategy, round(group.mean(self.metric), 4), *again, *values))
            if any(differences):
                rows[-1] += ("" if difference is None else _interval(difference),)
        columns += ["best − this"] if any(differences) else []
        note = f"Means over {', '.join(self.sweep.repeats)}, with their standard deviation. " if repeated else ""
        if any(differences):
            note += "Best − this: 95 % interval and p of a paired bootstrap over all answers of all repeats."
        return Table(f"Trials by {self.metric}", tuple(columns), tuple(rows), note)

    def _plot(self, axis: str) -> Plot | None:
        """Return the metric against one binding: each strategy's mean over everything else that is swept."""
        values: dict[str, dict[Any, list[float]]] = {}
        for row in self.rows:
            if self.metric in row.measures:
                value = _plain(row.state.trial.axes[axis])
                values.setdefault(row.strategy, {}).setdefault(value, []).append(row.measures[self.metric])
        kinds = list(dict.fromkeys(value for found in values.values() for value in found))
        if len(kinds) < 2:
            return None
        title = f"{self.metric} by {axis}"
        note = "Means over everything else that is swept."
        if all(isinstance(kind, int | float) and not isinstance(kind, bool) for kind in kinds):
            lines = {
                strategy: sorted((float(x), statistics.fmean(y)) for x, y in found.items())
                for strategy, found in values.items()
            }
            return Curve(title, axis, self.metric, lines, {}, note)
        means = {
            f"{shown(axis, kind)} {strategy}": statistics.fmean(found[kind])
            for kind in kinds
            for strategy, found in values.items()
            if kind in found
        }
        top = max(1.0, *means.values())
        bars = tuple((name, value / top, f"{value:.3f}") for name, value in means.items())
        return Bars(title, self.metric if top == 1.0 else f"{self.metric} / {top:.3g}", bars, note)


def _interval(found: Difference) -> str:
    return f"{found.low:+.3f} to {found.high:+.3f}, p {found.p:.4f}"


def _plain(value: Any) -> Any:
    """Return a value that can be a table's cell and a key."""
    return value if isinstance(value, int | float | str | bool) else repr(value)


def _rows(state: TrialState) -> list[Row]:
    if state.status != "done" or state.result is None:
        return []
    evaluation = state.result["evaluation"]
    if "task" not in evaluation:
        measures = {name: value for name, value in evaluation["text"].items() if isinstance(value, int | float)}
        return [Row(state, _TEXT, measures, ())]
    grades = read_json(state.directory / "evaluate" / GRADES)
    rows = []
    for strategy, found in evaluation["task"].items():
        if strategy != "name":
            numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
            rows.append(Row(state, strategy, numbers, tuple(map(float, grades[strategy]))))
    return rows


def summary(results: Results) -> dict[str, Any]:
    """Return the main numbers of a sweep, for programs."""
    groups = results.groups()
    difference = results.difference(groups[1], groups[0]) if len(groups) > 1 else None

    def facts(group: Group) -> dict[str, Any]:
        found = {"axes": group.axes, "strategy": group.strategy, "mean": group.mean(results.metric)}
        return {**found, "sd": group.spread(results.metric), "trials": [row.state.trial.name for row in group.rows]}

    return {
        "trials": len(results.states),
        "done": sum(state.status == "done" for state in results.states),
        "failed": [state.trial.name for state in results.states if state.status == "failed"],
        "metric": results.metric,
        "best": facts(groups[0]) if groups else None,
        "runner_up": facts(groups[1]) if len(groups) > 1 else None,
        "difference": None if difference is None else difference.__dict__,
    }
