"""Every writer shows the same contents, escapes what users wrote, and needs no network."""

import io
import re

import pytest
from rich.console import Console

from colm_jax.report.contents import Answer, Curve, Piece, Report, Table, words
from colm_jax.report.html import write_html
from colm_jax.report.markdown import write_markdown
from colm_jax.report.plots import to_svg, write_png
from colm_jax.report.terminal import show_report

PIECES = (
    Piece("is", 0, 0.1),
    Piece(" 3", 1, 0.8),
    Piece("1", 1, 0.6),
    Piece(".", 0, 0.1),
    Piece(" <b>", 0, None),
)
CURVE = Curve("accuracy", "rate", "accuracy", {"team": [(0.0, 0.2), (0.5, 0.9)]}, {"random": (0.5, 0.4)})
REPORT = Report(
    title="A <run> [red]",
    facts=(("base", "models/[bold]small"),),
    tables=(Table("Results | all", ("who", "accuracy"), (("base", 0.25), ("team", None)), "a note"),),
    curves=(CURVE,),
    answers=(Answer("<script>alert(1)</script>", PIECES, "31", True, 0.5), Answer("", (), None, None, None)),
    writers=("base", "expert"),
)


def test_words_carry_the_mean_over_their_tokens():
    grouped = words(PIECES)
    assert ["".join(p.text for p in word.pieces) for word in grouped] == ["is", " 31.", " <b>"]
    assert grouped[1].mean_p_defer == pytest.approx(0.5)
    assert grouped[2].mean_p_defer is None
    assert "".join(p.text for word in grouped for p in word.pieces) == "".join(p.text for p in PIECES)


def test_html_is_escaped_self_contained_and_marks_the_expert(tmp_path):
    write_html(REPORT, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)
    assert "@import" not in page
    assert '<span class="expert w1"> 3</span>' in page
    assert "mean p_defer 0.500" in page
    assert 'data-marks="expert right"' in page
    assert not list(tmp_path.glob("*.tmp"))


def test_markdown_escapes_and_bolds_the_expert(tmp_path):
    write_markdown(REPORT, tmp_path / "report.md", ["curve.png"])
    text = (tmp_path / "report.md").read_text()
    assert "is **31**. \\<b\\>" in text
    assert "\\<script\\>" in text
    assert "![accuracy](curve.png)" in text
    assert "| team | – |" in text


def test_terminal_shows_markup_as_text_and_styles_the_expert():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="truecolor")
    show_report(REPORT, console)
    shown = console.file.getvalue()
    assert "[bold]small" in shown
    assert "[red]" in shown
    assert re.search(r"\x1b\[[\d;]*7[\d;]*m 3", shown)
    assert "31. (0.50)" in shown


def test_pictures_are_written_and_the_same_each_time(tmp_path):
    write_png(CURVE, tmp_path / "a.png")
    write_png(CURVE, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert to_svg(CURVE) == to_svg(CURVE)
