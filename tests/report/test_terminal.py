"""The terminal shows markup as text, obeys no control characters, and makes experts' tokens stand out."""

import io
import re

from rich.console import Console

from colm_jax.report.contents import Answer, Piece
from colm_jax.report.terminal import show_answer, show_report
from tests.report.sample import EMPTY, REPORT


def _shown(show, colors="truecolor"):
    console = Console(file=io.StringIO(), force_terminal=bool(colors), width=100, color_system=colors)
    show(console)
    return console.file.getvalue()


def test_markup_is_shown_as_text():
    shown = _shown(lambda console: show_report(REPORT, console), colors=None)
    for text in (
        "A <run> [red]",
        "models/[bold]small",
        '[/red] "quoted"',
        "by [bold]other (mean p_defer): <b> (0.90)",
        "1,234",
        "0.50",
    ):
        assert text in shown


def test_experts_tokens_stand_out_and_are_named_without_colours():
    answer = REPORT.answers[0]
    shown = _shown(lambda console: show_answer(answer, REPORT.writers, console))
    assert re.search(r"is \x1b\[1;7;[\d;]*m3", shown)
    plain = _shown(lambda console: show_answer(answer, REPORT.writers, console), colors=None)
    assert "is 31.\n<b>\n" in plain
    assert "by an <expert> (mean p_defer): 31. (0.50)" in plain
    assert "✓ right" in plain


def test_control_characters_are_not_obeyed():
    answer = Answer("\x1b[2J", (Piece("a\x1b]0;title\x07", 1, 0.5),), "\x9b2J", False, None)
    shown = _shown(lambda console: show_answer(answer, ("base", "expert"), console), colors=None)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


def test_as_many_answers_as_asked_for():
    assert "quoted" not in _shown(lambda console: show_report(REPORT, console, answers=1))
    assert "(nothing written)" in _shown(lambda console: show_report(REPORT, console, answers=3))


def test_nothing_to_show():
    assert "nothing" in _shown(lambda console: show_report(EMPTY, console))
