"""The report's plots as PNG files and as SVG for the HTML page; uses matplotlib without its global state."""

import io
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from colm_jax.report.contents import Bars, Curve, Plot
from colm_jax.storage import path_of, replacing

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, safe for colour blindness
_INK = "#1f2021"
_MARKED = 40  # lines with more points have no markers
_MARKERS = "sD^vPX"
_BESIDE = tuple(  # offsets of a label from its point in points (x, y) and its alignments, best first
    (dx * far, dy * far, horizontal, vertical)
    for far in (1, 2)
    for dx, dy, horizontal, vertical in (
        (9, 0, "left", "center"),
        (0, 9, "center", "bottom"),
        (0, -9, "center", "top"),
        (-9, 0, "right", "center"),
        (7, 7, "left", "bottom"),
        (7, -7, "left", "top"),
        (-7, 7, "right", "bottom"),
        (-7, -7, "right", "top"),
    )
)
_SHIFTS = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}  # of a label's own size

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class _Label:
    """A label in a plot, and the points next to which it may be placed, best first."""

    name: str
    places: Points
    color: str


def draw(plot: Plot) -> Figure:
    """Return the figure of a plot."""
    return _draw_bars(plot) if isinstance(plot, Bars) else _draw_curve(plot)


def _draw_bars(plot: Bars) -> Figure:
    """Draw horizontal bars from 0 to 1, the first on top, each with its label."""
    figure = Figure(figsize=(7, 1.3 + 0.42 * max(1, len(plot.bars))), layout="constrained")
    axes = figure.subplots()
    for y, (_, share, beside) in enumerate(plot.bars):
        width = share if share is not None and math.isfinite(share) else 0.0
        axes.barh(y, width, height=0.62, color=COLORS[0])
        axes.annotate(beside, (width, y), (6, 0), textcoords="offset points", va="center", color=_INK, fontsize=10)
    axes.set_yticks(range(len(plot.bars)), [name for name, _, _ in plot.bars], parse_math=False)
    axes.set_ylim(max(1, len(plot.bars)) - 0.4, -0.6)
    axes.set_xlim(0, 1.28)  # room for the label of a full bar
    axes.set_xticks(np.arange(6) / 5)
    axes.tick_params(axis="y", length=0)
    _write_axes(axes, plot, "")
    axes.grid(visible=False, axis="y")
    return figure


def _write_axes(axes: Axes, plot: Plot, y_label: str) -> None:
    """Write title, labels, grid and frame, all in the ink that becomes the page's text colour."""
    axes.set_title(plot.title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=10, parse_math=False)
    axes.set_xlabel(plot.x_label, color=_INK, parse_math=False)
    axes.set_ylabel(y_label, color=_INK, parse_math=False)
    axes.tick_params(colors=_INK)
    axes.grid(alpha=0.15, color=_INK)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)


def _draw_curve(curve: Curve) -> Figure:
    """Draw each line and point with its label. Points that are not finite are left out."""
    lines = {name: found for name, points in curve.lines.items() if (found := _finite(points))}
    points = {name: point for name, point in curve.points.items() if _finite([point])}
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if curve.diagonal:
        axes.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1, alpha=0.6)
    for i, line in enumerate(lines.values()):
        marker = "o" if len(line) <= _MARKED else None
        axes.plot(*zip(*line), color=COLORS[i % len(COLORS)], linewidth=1.8, marker=marker, markersize=4.5)
    for i, (x, y) in enumerate(points.values()):
        color = COLORS[(i + len(lines)) % len(COLORS)]
        axes.plot([x], [y], _MARKERS[i % len(_MARKERS)], color=color, markersize=8.5, markeredgecolor=_INK, zorder=3)
    axes.margins(0.08, 0.12)
    _write_axes(axes, curve, curve.y_label)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are inside the axes and must not move them
    # A point has one possible place and a line many, so points choose first.
    labels = [_Label(name, [point], _INK) for name, point in points.items()]
    labels += [_Label(name, line[::-1], COLORS[i % len(COLORS)]) for i, (name, line) in enumerate(lines.items())]
    _write_labels(axes, labels, [_pixels(axes, line) for line in lines.values()])
    return figure


def write_png(plot: Plot, path: str | Path) -> None:
    """Write a plot as a PNG file."""
    with replacing(path_of(path)) as beside:
        draw(plot).savefig(beside, format="png", dpi=160, metadata={"Software": None})


def to_svg(plot: Plot, prefix: str = "") -> str:
    """Return a deterministic <svg> element for an HTML page; `prefix` makes its ids unique in the page.

    It has no background, its ink is the page's text colour, and the page may set its colours: --color-0, --color-1, ...
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Type", "Format"))
    with rc_context({"svg.hashsalt": "colm", "svg.fonttype": "path"}):
        draw(plot).savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(
        r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL
    )  # names as given, not escaped for HTML
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # implied in HTML
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text).replace(_INK, "currentColor")
    for i, color in enumerate(COLORS):
        text = text.replace(color.lower(), f"var(--color-{i}, {color})")
    return text


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _pixels(axes: Axes, line: Points) -> np.ndarray:
    """Return densely spaced points of a line in pixels, [points, 2]."""
    corners = axes.transData.transform(np.array(line, float))
    steps = np.linspace(0, 1, 30)[:, None]
    return np.concatenate([corners[:1], *(a + (b - a) * steps for a, b in pairwise(corners))])


def _write_labels(axes: Axes, labels: list[_Label], lines: list[np.ndarray]) -> None:
    """Place each label where it overlaps least with the plot's edge, other labels, markers and lines."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # only a removed part has none
    pixels = figure.dpi / 72  # of a point, in which offsets are given
    singles = [axes.transData.transform(label.places[0]) for label in labels if label.color == _INK]
    occupied = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in singles]
    for label in labels:
        text = axes.annotate(label.name, label.places[0], (0, 0), textcoords="offset points", parse_math=False)
        text.set(color=label.color, fontsize=10, fontweight="normal" if label.color == _INK else "bold")
        size = text.get_window_extent()
        best, best_cost = None, math.inf
        for rank, place in enumerate(label.places):
            if 0.5 * rank >= best_cost:
                break
            at = axes.transData.transform(place)
            for order, (dx, dy, horizontal, vertical) in enumerate(_BESIDE):
                x0, y0 = at + np.array([dx, dy]) * pixels
                x0 -= size.width * _SHIFTS[horizontal]
                y0 -= size.height * _SHIFTS[vertical]
                box = Bbox.from_bounds(x0, y0, size.width, size.height)
                near = box.padded(2)
                covered = sum(bool(((line > near.min) & (line < near.max)).all(1).any()) for line in lines)
                outside = not (axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0)
                hidden = sum(box.overlaps(other) for other in occupied)
                cost = 8 * hidden + 9 * outside + 4 * covered + 0.5 * rank + 0.1 * order
                if cost < best_cost:
                    best, best_cost = (place, (dx, dy), horizontal, vertical, box), cost
        assert best is not None
        text.xy, text.xyann = best[0], best[1]
        text.set(ha=best[2], va=best[3])
        occupied.append(best[4])
