"""The report as GitHub Markdown: tables, links to plots, and a few answers with experts' tokens in bold."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from colm_jax.report.contents import Piece, Plot, Report, ShownAnswer, Table
from colm_jax.report.words import words
from colm_jax.storage import path_of, write_text

_SHOWN = 10  # answers


def write_markdown(report: Report, path: str | Path, images: Sequence[str]) -> None:
    """Write the report as Markdown; `images` are the plots' files in order, relative to `path`.

    Raises:
      ValueError: the number of images differs from the number of plots.
    """
    if len(images) != len(report.plots):
        raise ValueError(f"the report has {len(report.plots)} plots, but images are {list(images)!r}")
    files = iter(images)
    lines = [f"# {_plain(report.title)}", ""]
    lines += [f"- {_plain(name)}: {_plain(value)}" for name, value in report.facts]
    for table in report.tables:
        lines += ["", *markdown_table(table)]
    for plot in report.curves:
        lines += ["", *_plot(plot, next(files))]
    if report.answers:
        lines += ["", "## Answers"]
        if len(report.writers) > 1:
            lines += ["", f"Tokens in **bold** are by {_plain(', '.join(report.writers[1:]))}, others by the base."]
    for i, answer in enumerate(report.answers[:_SHOWN], start=1):
        lines += ["", f"### {i}{_verdict(answer)}", "", *_quoted(answer.prompt), "", *_text(answer.pieces)]
        if answer.reference is not None:
            lines += ["", f"Reference: {_plain(answer.reference.strip())}"]
    if len(report.answers) > _SHOWN:
        lines += ["", f"{_SHOWN} of {len(report.answers)} answers; the HTML report has them all."]
    for section in report.sections:
        lines += ["", f"## {_plain(section.title)}"]
        lines += ["", _plain(section.text)] if section.text else []
        for table in section.tables:
            lines += ["", *markdown_table(table, "###")]
        for plot in section.plots:
            lines += ["", *_plot(plot, next(files))]
        for example in section.examples:
            lines += ["", f"{_plain(example.title)}:", "", *_text(example.pieces)]
    write_text(path_of(path), "\n".join(lines) + "\n")


def _plot(plot: Plot, image: str) -> list[str]:
    lines = [f"![{_plain(plot.title)}]({quote(image)})"]
    return [*lines, "", _plain(plot.note)] if plot.note else lines


def markdown_table(table: Table, heading: str = "##") -> list[str]:
    """Return the lines of a table, with its title and its note."""
    rules = ["---:" if numeric else "---" for numeric in table.numeric]
    lines = [f"{heading} {_plain(table.title)}", ""]
    for row in (tuple(map(_plain, table.columns)), rules, *(map(_plain, row) for row in table.shown)):
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, "", _plain(table.note)] if table.note else lines


def _verdict(answer: ShownAnswer) -> str:
    grade = "" if answer.correct is None else " ✓ right" if answer.correct else " ✗ wrong"
    changed = {"better": ", base alone wrong", "worse": ", base alone right", "differs": " (base alone: other text)"}
    return grade + changed.get(answer.outcome or "", "")


def _quoted(prompt: str) -> list[str]:
    lines = [_plain(line) for line in prompt.strip().splitlines() if line.strip()]
    return [f"> {line}\\" for line in lines[:-1]] + [f"> {line}" for line in lines[-1:]]


def _text(pieces: Sequence[Piece]) -> list[str]:
    """Return the non-blank lines of the text; adjacent tokens by experts on a line share one pair of marks."""
    lines: list[list[tuple[bool, str]]] = [[]]  # for each line, its runs by experts or by the base
    for word in words(pieces):
        if any("\n" in part.text for part in word.space) and lines[-1]:
            lines.append([])
        space = " " if word.space and lines[-1] else ""
        for part in word.pieces:
            by_expert = part.source > 0
            if lines[-1] and lines[-1][-1][0] == by_expert:
                lines[-1][-1] = (by_expert, lines[-1][-1][1] + space + part.text)
            else:
                lines[-1] += [(False, space)] * bool(space) + [(by_expert, part.text)]
            space = ""
    texts = [_marked(line) for line in lines if line]
    return [f"{text}\\" for text in texts[:-1]] + texts[-1:] or ["(nothing written)"]


def _marked(runs: list[tuple[bool, str]]) -> str:
    """Return a line with experts' runs in bold: by asterisks, or by a tag if asterisks would be parsed as text.

    CommonMark does not open or close bold text between a letter and a punctuation mark, as in a**^5**.
    """
    whole = "".join(text for _, text in runs)
    line, end = "", 0
    for by_expert, text in runs:
        start, end = end, end + len(text)
        if not by_expert or not text:
            line += _plain(text) if start else _start(_plain(text))
            continue
        opens = not _is_mark(text[0]) or not start or _is_mark(whole[start - 1]) or whole[start - 1].isspace()
        closes = not _is_mark(text[-1]) or end == len(whole) or _is_mark(whole[end]) or whole[end].isspace()
        line += f"**{_plain(text)}**" if opens and closes else f"<b>{_plain(text)}</b>"
    return line


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _start(line: str) -> str:
    """Return a line with its beginning escaped, so that it is no list, rule or heading."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line)


def _plain(text: str) -> str:
    """Return the text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", " ".join(text.split()) if "\n" in text else text)
