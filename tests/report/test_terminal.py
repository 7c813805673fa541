"""The terminal output shows markup as text, escapes control characters, and highlights experts' tokens."""

import io
import re

from rich.console import Console

from colm_jax.report.contents import Piece, Report, ShownAnswer, Table
from colm_jax.report.terminal import show_answer, show_report, show_sections, show_tokens
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


def test_expert_tokens_are_highlighted_with_and_without_colours():
    answer = REPORT.answers[0]
    shown = _shown(lambda console: show_answer(answer, REPORT.writers, console))
    assert re.search(r"is \x1b\[1;4;7;[\d;]*m3", shown)
    plain = _shown(lambda console: show_answer(answer, REPORT.writers, console), colors=None)
    assert "is 31.\n<b>\n" in plain
    assert "by an <expert> (mean p_defer): 31. (0.50)" in plain
    assert "✓ right" in plain


def test_control_characters_are_escaped():
    answer = ShownAnswer("\x1b[2J", (Piece("a\x1b]0;title\x07", 1, 0.5),), "\x9b2J", False, None)
    shown = _shown(lambda console: show_answer(answer, ("base", "expert"), console), colors=None)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


def test_number_of_answers():
    assert "quoted" not in _shown(lambda console: show_report(REPORT, console, answers=1))
    assert "(nothing written)" in _shown(lambda console: show_report(REPORT, console, answers=3))


def test_marks_and_the_base_alone_are_shown():
    shown = _shown(lambda console: show_answer(REPORT.answers[1], REPORT.writers, console), colors=None)
    assert "base alone was right: <u> yes" in shown
    assert "\nno?\n" in shown
    assert "to check (risk): no (0.62)" in shown


def test_tokens_are_shown_with_each_models_candidates():
    shown = _shown(lambda console: show_tokens(REPORT.answers[1], REPORT.writers, console), colors=None)
    assert "“</script>” 0.70" in shown
    assert "“ b↵” 0.20" in shown
    assert re.search(r"\(risk.*0\.62\)", shown, re.DOTALL)
    plain = _shown(lambda console: show_tokens(REPORT.answers[0], REPORT.writers, console), colors=None)
    assert re.search(r"2 +“ 3” +an <expert> +0.800\s", plain)
    assert "top tokens" not in plain and "risk" not in plain


def test_sections_show_their_tables():
    shown = _shown(lambda console: show_sections(REPORT, console), colors=None)
    assert "Gate & <co>" in shown
    assert "By <class>" in shown
    assert "a|b" in shown


def test_wide_tables_lose_nothing():
    table = Table("t", tuple(f"column {c}" for c in "abcdefghijkl"), ((*"ABCDEFGHIJK", "supercalifragilistic"),))
    console = Console(file=io.StringIO(), width=60)
    show_report(Report("r", (), (table,), (), (), ("base",)), console)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 60
    assert set("ABCDEFGHIJK") <= set(shown)
    assert "…" not in shown


def test_empty_report():
    assert "nothing" in _shown(lambda console: show_report(EMPTY, console))
