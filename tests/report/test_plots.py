"""Plots are deterministic, labelled, and change no global state."""

import itertools
import math

import matplotlib
import pytest

from colm_jax.report.contents import Bars, Curve
from colm_jax.report.plots import draw, to_svg, write_png
from tests.report.sample import CURVE


def test_images_are_deterministic(tmp_path):
    before = dict(matplotlib.rcParams)
    write_png(CURVE, tmp_path / "a.png")
    write_png(CURVE, str(tmp_path / "b.png"))
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.png", "b.png"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert to_svg(CURVE, "p-") == to_svg(CURVE, "p-")
    assert dict(matplotlib.rcParams) == before


def test_svg_uses_the_colours_of_the_page():
    svg = to_svg(CURVE)
    assert "currentColor" in svg
    assert "var(--color-0, #0072B2)" in svg
    assert "http" not in svg
    assert "<!--" not in svg


def test_labels_are_near_their_lines_and_do_not_overlap():
    line = [(0.0, 0.41), (0.05, 0.58), (0.2, 0.71), (0.7, 0.694)]
    near = [(x, y - 0.01) for x, y in line]
    points = {"expert": (1.0, 0.69), "random": (0.1, 0.5), "base": (0.0, 0.47)}
    figure = draw(Curve("c", "x", "y", {"co-llm": line, "weak supervision": near}, points))
    texts = figure.axes[0].texts
    assert {text.get_text() for text in texts} == {"co-llm", "weak supervision", *points}
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_bars_have_the_length_of_their_shares_and_labels():
    shares = (("numbers", 0.5, "50 % of 4"), ("$words$", 0.0, "0 % of 2"), ("none", None, "no tokens"))
    axes = draw(Bars("b", "share", shares)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.0, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["numbers", "$words$", "none"]
    assert [text.get_text() for text in axes.texts] == ["50 % of 4", "0 % of 2", "no tokens"]
    assert axes.yaxis_inverted()
    assert to_svg(Bars("b", "share", ())).startswith("<svg")


def test_diagonal_is_drawn_on_request():
    def dashed(diagonal):
        curve = Curve("c", "x", "y", {"a": [(0.2, 0.3), (0.4, 0.5)]}, {}, diagonal=diagonal)
        return [line.get_xydata().tolist() for line in draw(curve).axes[0].lines if line.get_linestyle() == "--"]

    assert dashed(True) == [[[0, 0], [1, 1]]]
    assert dashed(False) == []


@pytest.mark.parametrize(
    ("lines", "points"),
    [
        ({}, {}),
        ({"a": []}, {}),
        ({"a": [(0.5, 0.5)]}, {}),
        ({"a": [(0.1, math.nan), (0.2, 0.3)]}, {"b": (0.1, math.inf)}),
    ],
)
def test_plots_of_few_points(lines, points):
    assert draw(Curve("c", "x", "y", lines, points)).axes
    assert to_svg(Curve("c", "x", "y", lines, points)).startswith("<svg")
