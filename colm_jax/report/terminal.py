"""The report in the terminal: the tables, and some answers with experts' tokens standing out."""

import re

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from colm_jax.report.contents import Answer, Report, Table
from colm_jax.report.words import words

_STYLES = ("bold reverse dark_orange", "bold reverse green", "bold reverse magenta")  # of experts 1, 2, 3, 1, ...


def show_report(report: Report, console: Console, answers: int = 3) -> None:
    """Prints facts, tables and the first few answers."""
    console.rule(_plain(report.title, "bold"))
    for name, value in report.facts:
        console.print(_plain(f"{name}: {value}"), soft_wrap=True)
    for table in report.tables:
        console.print()
        console.print(_table(table))
    for answer in report.answers[:answers]:
        console.print()
        show_answer(answer, report.writers, console)


def show_answer(answer: Answer, writers: tuple[str, ...], console: Console) -> None:
    """Prints one answer, and by expert the words that it had a part in, each with its mean p_defer.

    Naming the words says who wrote what where there are no colours, as in a file.
    """
    console.print(_plain(answer.prompt.strip(), "dim"))
    line = Text()
    called: dict[int, list[str]] = {}
    for i, word in enumerate(words(answer.pieces)):
        if i:
            line.append_text(_plain("".join(part.text for part in word.space)))
        for part in word.pieces:
            line.append_text(_plain(part.text, _STYLES[(part.source - 1) % len(_STYLES)] if part.source else ""))
        for source in sorted(word.sources - {0}):
            mean = word.mean_p_defer
            called.setdefault(source, []).append(word.text if mean is None else f"{word.text} ({mean:.2f})")
    console.print(line if line.plain.strip() else Text("(nothing written)", style="dim"))
    if answer.correct is not None:
        console.print("  ✓ right" if answer.correct else "  ✗ wrong", style="green" if answer.correct else "red")
    if answer.reference is not None:
        console.print(_plain(f"  reference: {answer.reference.strip()}", "dim"))
    rate = " (mean p_defer)" if any(piece.p_defer is not None for piece in answer.pieces) else ""
    for source, found in sorted(called.items()):
        console.print(_plain(f"  by {writers[source]}{rate}: {' · '.join(found)}", "dim italic"))


def _plain(text: str, style: str = "") -> Text:
    """Text without rich's markup; control characters, which terminals obey, are shown as a box."""
    return Text(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text), style=style)


def _table(table: Table) -> RichTable:
    rich = RichTable(
        title=_plain(table.title, "bold"),
        caption=_plain(table.note, "dim") if table.note else None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for column, numeric in zip(table.columns, table.numeric):
        rich.add_column(_plain(column), justify="right" if numeric else "left")
    for row in table.shown:
        rich.add_row(*map(_plain, row))
    return rich
