"""The report as Markdown: tables, pictures by file name, and a few answers with experts' tokens in bold."""

import re
from collections.abc import Sequence
from pathlib import Path

from colm_jax.report.contents import Answer, Report, Table, shown

_SHOWN = 10


def write_markdown(report: Report, path: Path, images: Sequence[str]) -> None:
    """Writes the file beside its place and renames it; `images` are the curves' files, relative to it."""
    lines = [f"# {_plain(report.title)}", ""]
    lines += [f"- {name}: {_plain(value)}" for name, value in report.facts]
    for table in report.tables:
        lines += ["", *markdown_table(table)]
    for curve, image in zip(report.curves, images):
        lines += ["", f"![{_plain(curve.title)}]({image})"]
    if report.answers:
        lines += ["", "## Answers", "", f"Tokens in **bold** are by {', '.join(report.writers[1:])}."]
    for answer in report.answers[:_SHOWN]:
        lines += ["", f"> {_plain(answer.prompt)}", "", _answer(answer)]
    beside = path.with_name(path.name + ".tmp")
    beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    beside.replace(path)


def markdown_table(table: Table) -> list[str]:
    """A table's lines, its title first and its note last."""
    lines = [f"## {_plain(table.title)}", "", f"| {' | '.join(table.columns)} |", "|" + " --- |" * len(table.columns)]
    lines += [f"| {' | '.join(_plain(shown(cell)) for cell in row)} |" for row in table.rows]
    return [*lines, "", table.note] if table.note else lines


def _answer(answer: Answer) -> str:
    """Neighbouring tokens of experts share one pair of asterisks, which must touch no white space."""
    runs: list[tuple[bool, str]] = []
    for piece in answer.pieces:
        by_expert = piece.source > 0
        if runs and (runs[-1][0] == by_expert or not piece.text.strip()):
            runs[-1] = (runs[-1][0], runs[-1][1] + piece.text)
        else:
            runs.append((by_expert, piece.text))
    text = ""
    for by_expert, part in runs:
        inner = part.strip()
        bold = f"**{_plain(inner)}**" if by_expert and inner else _plain(inner)
        text += part[: len(part) - len(part.lstrip())] + bold + (part[len(part.rstrip()) :] if inner else "")
    return text.strip()


def _plain(text: str) -> str:
    """Text whose characters mean nothing to Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text).replace("\n", " ")
