"""Curves as PNG and as SVG, by matplotlib."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from colm_jax.report.contents import Curve

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, safe for colour blindness
_MARKERS = "osD^vPX*"


def draw(curve: Curve) -> Figure:
    """The figure of a curve."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(curve.lines.items()):
        axes.plot(*zip(*points), marker="o", markersize=4, color=COLORS[i % len(COLORS)], label=name)
    for i, (name, (x, y)) in enumerate(curve.points.items()):
        color = COLORS[(i + len(curve.lines)) % len(COLORS)]
        axes.plot([x], [y], _MARKERS[i % len(_MARKERS)], markersize=9, color=color, label=name, linestyle="none")
    axes.set_title(curve.title, loc="left")
    axes.set_xlabel(curve.x_label)
    axes.set_ylabel(curve.y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def write_png(curve: Curve, path: Path) -> None:
    """Writes a picture beside its place and renames it."""
    beside = path.with_name(path.name + ".tmp")
    draw(curve).savefig(beside, format="png", dpi=150, metadata={"Software": None})
    beside.replace(path)


def to_svg(curve: Curve) -> str:
    """An <svg> element, the same bytes for the same curve."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "colm", "svg.fonttype": "path"}):
        draw(curve).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
