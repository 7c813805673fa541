"""The report in the terminal: the tables, and some answers with experts' tokens highlighted."""

import re

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from colm_jax.report.contents import Report, ShownAnswer, Table
from colm_jax.report.words import words

_STYLES = (  # of experts 1, 2, 3, 1, ...; underlined as well, since colour must not be the only mark
    "bold underline reverse dark_orange",
    "bold underline reverse green",
    "bold underline reverse magenta",
)
_OUTCOMES = {
    "better": "base alone was wrong",
    "worse": "base alone was right",
    "differs": "base alone wrote another text",
}


def show_report(report: Report, console: Console, answers: int = 3) -> None:
    """Print facts, tables and the first few answers."""
    show_results(report, console)
    for answer in report.answers[:answers]:
        console.print()
        show_answer(answer, report.writers, console)


def show_results(report: Report, console: Console) -> None:
    """Print facts and the tables of the results."""
    console.rule(plain(report.title, "bold"))
    for name, value in report.facts:
        console.print(plain(f"{name}: {value}"), soft_wrap=True)
    for table in report.tables:
        show_table(table, console)


def show_sections(report: Report, console: Console) -> None:
    """Print the tables of the report's sections."""
    for section in report.sections:
        if section.tables:
            console.print()
            console.rule(plain(section.title, "bold"), align="left")
        for table in section.tables:
            show_table(table, console)


def show_answer(answer: ShownAnswer, writers: tuple[str, ...], console: Console) -> None:
    """Print an answer, and for each expert the words with tokens by it, each with its mean p_defer.

    The list of words identifies the writers without colours, as in a file.
    """
    console.print(plain(answer.prompt.strip(), "dim"))
    line = Text()
    called: dict[int, list[str]] = {}
    checks: list[str] = []
    for i, word in enumerate(words(answer.pieces)):
        if i:
            line.append_text(plain("".join(part.text for part in word.space)))
        for part in word.pieces:
            style = _STYLES[(part.source - 1) % len(_STYLES)] if part.source else ""
            line.append_text(plain(part.text, style))
        if word.check:
            line.append_text(plain("?", "bold red"))
        for source in sorted(word.sources - {0}):
            mean = word.mean_p_defer
            called.setdefault(source, []).append(word.text if mean is None else f"{word.text} ({mean:.2f})")
        if word.check and word.risk is not None:
            checks.append(f"{word.text} ({word.risk:.2f})")
    console.print(line if line.plain.strip() else Text("(nothing written)", style="dim"))
    if answer.correct is not None:
        console.print("  ✓ right" if answer.correct else "  ✗ wrong", style="green" if answer.correct else "red")
    if answer.reference is not None:
        console.print(plain(f"  reference: {answer.reference.strip()}", "dim"))
    if answer.outcome in _OUTCOMES:
        line_alone = f"  {_OUTCOMES[answer.outcome]}: {(answer.alone or '').strip() or '(nothing written)'}"
        console.print(plain(line_alone, "dim"))
    rate = " (mean p_defer)" if any(piece.p_defer is not None for piece in answer.pieces) else ""
    for source, found in sorted(called.items()):
        console.print(plain(f"  by {writers[source]}{rate}: {' · '.join(found)}", "dim italic"))
    if checks:
        console.print(plain(f"  to check (risk): {' · '.join(checks)}", "dim italic"))


def show_tokens(answer: ShownAnswer, writers: tuple[str, ...], console: Console) -> None:
    """Print a table of an answer's tokens: writer, p_defer and, if known, each model's most probable tokens."""
    known = max((len(piece.views) for piece in answer.pieces), default=0)
    columns = ["", "token", "by", "p_defer", *(f"{name}'s top tokens" for name in writers[:known])]
    rich = RichTable(box=SIMPLE_HEAD)
    for name in columns:
        rich.add_column(plain(name), justify="right" if name in ("", "p_defer") else "left")
    for i, piece in enumerate(answer.pieces, start=1):
        style = _STYLES[(piece.source - 1) % len(_STYLES)] if piece.source else ""
        rate = "–" if piece.p_defer is None else f"{piece.p_defer:.3f}"
        views = ["  ".join(f"{_quoted(text)} {p:.2f}" for text, p in view.candidates) for view in piece.views]
        mark = f" (risk {piece.risk:.2f})" if piece.check and piece.risk is not None else ""
        cells = [plain(cell) for cell in (writers[piece.source] + mark, rate, *views)]
        rich.add_row(str(i), plain(_quoted(piece.text), style), *cells)
    console.print(rich)


def _quoted(text: str) -> str:
    """Return a token's text in quotes, with line breaks visible."""
    return f"“{text}”".replace("\n", "↵")


def plain(text: str, style: str = "") -> Text:
    """Return text without rich's markup; control characters are replaced, since terminals would execute them."""
    return Text(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text), style=style)


def show_table(table: Table, console: Console) -> None:
    """Print an empty line and a table. Words and numbers are not broken if the console is wide enough."""
    cells = [[column, *(row[i] for row in table.shown)] for i, column in enumerate(table.columns)]
    widths = _widths(cells, console.width - 3 * len(cells) - 1)
    rich = RichTable(
        title=plain(table.title, "bold"),
        caption=plain(table.note, "dim") if table.note else None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for column, numeric, width in zip(table.columns, table.numeric, widths):
        justify: JustifyMethod = "right" if numeric else "left"
        rich.add_column(plain(column), justify=justify, width=width, overflow="fold")
    for row in table.shown:
        rich.add_row(*map(plain, row))
    console.print()
    console.print(rich)


def _widths(columns: list[list[str]], room: int) -> list[int | None]:
    """Return a width for each column in which no word is broken; None for each where the words exceed the room.

    rich's own minimum widths do not do: a table that they make too wide is cut at the right.

    Args:
      columns: the cells of each.
      room: characters of all columns together.
    """
    least = [max(cell_len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    wanted = [max(cell_len(line) for cell in cells for line in cell.splitlines() or [""]) for cells in columns]
    widths, left = dict[int, int](), room - sum(least)
    if left < 0:
        return [None] * len(columns)
    order = sorted(range(len(columns)), key=lambda i: wanted[i] - least[i])
    for count, i in zip(range(len(order), 0, -1), order):  # those that want little leave their part to the others
        more = min(wanted[i] - least[i], left // count)
        widths[i], left = least[i] + more, left - more
    return [widths[i] for i in range(len(columns))]
