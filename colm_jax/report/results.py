"""Tables and plots of results: accuracies with intervals, calibration, cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from colm_jax.evaluation.compare import wilson
from colm_jax.evaluation.cost import Work, alone, together
from colm_jax.models.config import ModelConfig
from colm_jax.report.contents import Curve, Section, Table

_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def interval(accuracy: float, answers: int) -> str:
    """Return Wilson's 95 % interval of an accuracy, as text."""
    low, high = wilson(round(accuracy * answers), answers)
    return f"{low:.3f}–{high:.3f}"


def area_under(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the area under a curve divided by its range in x (its mean height); None if the range is empty."""
    x, y = np.array(sorted(points), float).reshape(-1, 2).T
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 and x[-1] > x[0] else None


def with_area(title: str, lines: dict[str, list[tuple[float, float]]], points: dict[str, tuple[float, float]]) -> Curve:
    """Return a plot of accuracy against deferral rate, with each curve's area in the note."""
    areas = {name: area_under(line) for name, line in lines.items()}
    described = [
        f"{name} {area:.3f} from deferral rate {min(lines[name])[0]:.2f} to {max(lines[name])[0]:.2f}"
        for name, area in areas.items()
        if area is not None
    ]
    note = f"Area under the curve, divided by the range it spans: {'; '.join(described)}." if described else ""
    return Curve(title, "deferral rate", "accuracy", lines, points, note)


def calibration_section(calibration: Mapping[str, Any]) -> Section:
    """Return the section on calibration: the dev set's curve and, if present, ROC and reliability diagram.

    Args:
      calibration: the result of `calibration.threshold`, or an older file without "roc" and "reliability".
    """
    metric = calibration["metric"].replace("_", " ")
    line = [(point["deferral_rate"], point["score"]) for point in calibration["curve"]]
    chosen = {f"η = {calibration['threshold']:.3f}": (calibration["deferral_rate"], calibration["score"])}
    curve = with_area(f"Calibration: {metric} (dev)", {"team": line}, chosen)
    plots = [Curve(curve.title, curve.x_label, metric, curve.lines, curve.points, curve.note)]
    roc = calibration.get("roc") or {}
    if roc.get("points"):  # empty if the expert always or never differs
        plots.append(_roc(roc))
    if reliability := calibration.get("reliability"):
        plots.append(_reliability(reliability))
    return Section("Calibration", "", (), tuple(plots))


def _roc(roc: Mapping[str, Any]) -> Curve:
    youden = roc["youden"]
    points = {f"Youden, η = {youden['threshold']:.3f}": (youden["fpr"], youden["tpr"])}
    note = f"Area {roc['area']:.3f}; the diagonal, 0.5, is chance."
    note += f" Youden's point (true minus false positive rate is greatest): η = {youden['threshold']:.4f}."
    lines = {"p_defer": [(x, y) for x, y, _ in roc["points"]]}
    title = "ROC: p_defer finds where the expert differs from the base (dev)"
    return Curve(title, "false positive rate", "true positive rate", lines, points, note, diagonal=True)


def _reliability(reliability: Mapping[str, Any]) -> Curve:
    line = [(b["p_defer"], b["share"]) for b in reliability["bins"] if b["count"]]
    note = f"Brier score {reliability['brier']:.4f}, expected calibration error {reliability['ece']:.4f}."
    return Curve(
        "Reliability: p_defer against expert right and base wrong (dev)",
        "mean p_defer of a bin",
        "share of tokens",
        {"team": line},
        {},
        note,
        diagonal=True,
    )


def cost_section(
    writers: Sequence[str],
    configs: Sequence[ModelConfig],
    bytes_a_weight: Sequence[float],
    answers: Sequence[tuple[int, Sequence[int]]],
) -> Section | None:
    """Return the section on expected cost per answer, of the team and of each model alone with equal answer lengths.

    Args:
      writers: names of the base and of each expert.
      configs: their configurations.
      bytes_a_weight: their bytes per weight.
      answers: for each answer, the number of prompt tokens and the source of each written token.
    """
    written = [(prompt, sources) for prompt, sources in answers if len(sources)]
    if not written or len(configs) < 2:
        return None
    rows = []
    for m, name in enumerate(writers):
        works = [alone(configs[m], prompt, len(sources), bytes_a_weight[m]) for prompt, sources in written]
        rows.append((f"{name} alone", sum(works, Work()), 0.0 if m == 0 else None))
    team = [together(configs, prompt, sources, bytes_a_weight) for prompt, sources in written]
    calls = sum(source > 0 for _, sources in written for source in sources) / len(written)
    rows.append(("team", sum(team, Work()), calls))
    dearest = max(rows[1:-1], key=lambda row: row[1].flops)
    flops, flop_unit = _unit(max(work.flops for _, work, _ in rows) / len(written), "flop")
    size, byte_unit = _unit(max(work.bytes for _, work, _ in rows) / len(written), "B")
    table = Table(
        "Expected work of an answer",
        (
            "who writes",
            flop_unit,
            f"of {dearest[0]}",
            f"weights read, {byte_unit}",
            f" of {dearest[0]}",
            "expert calls",
        ),
        tuple(
            (
                name,
                _digits(work.flops / len(written) / flops),
                round(work.flops / dearest[1].flops, 3),
                _digits(work.bytes / len(written) / size),
                round(work.bytes / dearest[1].bytes, 3),
                None if calls is None else round(calls, 2),
            )
            for name, work, calls in rows
        ),
        f"Means over {len(written):,} answers of {np.mean([len(s) for _, s in written]):.1f} tokens to prompts of "
        f"{np.mean([p for p, _ in written]):.1f}, decoded one at a time; models alone write as many tokens. "
        "Operations: 2 per weight that a token uses, plus attention. Each forward pass reads the weights once; an "
        "expert call is one pass over all tokens not in its cache. In a batch, sequences share passes and bytes.",
    )
    return Section("Cost", "", (table,))


def _unit(value: float, name: str) -> tuple[float, str]:
    """Return the size and name of the unit with the largest SI prefix that is at most the value."""
    return next(((size, f"{letter}{name}") for size, letter in _UNITS if value >= size), (1.0, name))


def _digits(value: float) -> float:
    """Round to three significant digits."""
    return float(f"{value:.3g}")
