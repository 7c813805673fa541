"""The report as a single HTML file without network access: tables, plots, and answers with marked writers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from colm_jax.report.contents import Bars, Piece, Plot, Report, ShownAnswer
from colm_jax.report.page import PAGE, SCRIPT, STYLE
from colm_jax.report.plots import COLORS, to_svg
from colm_jax.report.words import Word, words, writers_of
from colm_jax.storage import path_of, write_text

_LINES = (
    "solid",
    "double",
    "dotted",
    "dashed",
    "wavy",
)  # under experts' tokens, since colour must not be the only mark
_FILTERS = (
    ("right", "right"),
    ("wrong", "wrong"),
    ("better", "expert changed the outcome: now right"),
    ("worse", "expert changed the outcome: now wrong"),
    ("differs", "expert changed the outcome: other text"),
    ("expert", "expert was called"),
    ("check", "to check"),
)
_OUTCOMES = {"better": "▲ base alone was wrong", "worse": "▼ base alone was right", "differs": "≠ base alone"}

_TEMPLATE = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
    PAGE
)


def write_html(report: Report, path: str | Path) -> None:
    """Write the report as an HTML page."""
    known: list[list[Any]] = []  # for each interactive word, its tokens in the format of the page's script

    def marked(pieces: Sequence[Piece], threshold: float | None = None) -> Markup:
        return _text(words(pieces), report.writers, threshold, known)

    answers = [_shown(answer, marked) for answer in report.answers]
    counts = [(mark, label, sum(mark in marks for _, marks, _, _ in answers)) for mark, label in _FILTERS]
    drawn = (Markup(to_svg(plot, f"plot{i}-")) for i, plot in enumerate(report.plots))
    page = _TEMPLATE.render(
        report=report,
        next_plot=lambda: next(drawn),  # in the page's order
        described=_described,
        marked=marked,
        answers=answers,
        scored=any(piece.views for answer in report.answers for piece in answer.pieces),
        judged=any(piece.risk is not None for answer in report.answers for piece in answer.pieces),
        outcomes=_OUTCOMES,
        filters=[("all", "all", len(answers)), *(found for found in counts if found[2])],
        experts="the expert" if len(report.writers) == 2 else "experts",
        colors=len(COLORS) - 1,
        lines=_LINES,
        tokens=lambda: _json({"writers": report.writers, "words": known}),  # called last, after all words are collected
        style=Markup(STYLE),
        script=Markup(SCRIPT),
    )
    write_text(path_of(path), page)


def _shown(answer: ShownAnswer, marked: Any) -> tuple[ShownAnswer, list[str], Markup, int]:
    """Return an answer, its filter marks, its marked text, and the number of its words to check."""
    checks = sum(word.check for word in words(answer.pieces))
    return answer, _marks(answer), marked(answer.pieces, answer.threshold), checks


def _described(plot: Plot) -> str:
    """Return a description of a plot for screen readers."""
    if isinstance(plot, Bars):
        return "; ".join(f"{name}: {'none' if share is None else f'{share:.3g}'}" for name, share, _ in plot.bars)
    return f"{plot.y_label} over {plot.x_label}"


def _json(value: Any) -> Markup:
    """Return JSON that is safe inside a script element, whatever its strings contain."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _marks(answer: ShownAnswer) -> list[str]:
    """Return the marks by which the page filters an answer."""
    marks = [] if answer.correct is None else ["right" if answer.correct else "wrong"]
    if answer.outcome not in (None, "same"):
        marks.append(str(answer.outcome))
    marks += ["expert"] * (answer.by_experts > 0)
    return marks + ["check"] * any(piece.check for piece in answer.pieces)


def _text(found: Sequence[Word], writers: tuple[str, ...], threshold: float | None, known: list[list[Any]]) -> Markup:
    """Return interactive words whose tokens have their writers' colours; Markup escapes its arguments."""
    parts = []
    for i, word in enumerate(found):
        for part in word.space:
            if part.source and "\n" in part.text:
                parts.append(Markup('<span class="expert w{} break"></span>').format(part.source))
            if i:
                parts.append(Markup("{}").format(part.text))
        if word.pieces:
            tokens = Markup().join(_token(part) for part in word.pieces)
            kind = "word check" if word.check else "word"
            span = Markup('<span class="{}" tabindex="0" data-word="{}" title="{}">{}</span>')
            parts.append(span.format(kind, len(known), writers_of(word, writers), tokens))
            known.append([_known(part, threshold) for part in word.pieces])
    return Markup().join(parts)


def _known(part: Piece, threshold: float | None) -> list[Any]:
    """Return the details of a token: text, writer, p_defer, threshold, its writer's probability, risk, candidates."""
    views = [[[text, round(p, 4)] for text, p in view.candidates] for view in part.views]
    rounded = [None if x is None else round(x, 4) for x in (part.p_defer, threshold, part.confidence, part.risk)]
    return [part.text, part.source, *rounded, views]


def _token(part: Piece) -> Markup:
    if not part.source:
        return escape(part.text)
    return Markup('<span class="expert w{}">{}</span>').format(part.source, part.text)
