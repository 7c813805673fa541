"""The report in the terminal: the tables, and some answers with experts' tokens standing out."""

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from colm_jax.report.contents import Answer, Report, shown, words

_STYLES = ("", "bold reverse dark_orange", "bold reverse green", "bold reverse magenta")


def show_report(report: Report, console: Console, answers: int = 3) -> None:
    """Prints facts, tables and the first few answers."""
    console.rule(Text(report.title, style="bold"))
    for name, value in report.facts:
        console.print(Text(f"{name}: {value}"), soft_wrap=True)
    for table in report.tables:
        console.print(_table(table))
    for answer in report.answers[:answers]:
        show_answer(answer, report.writers, console)


def show_answer(answer: Answer, writers: tuple[str, ...], console: Console) -> None:
    """Prints one answer, and the words an expert had a part in with their mean p_defer."""
    line = Text(answer.prompt.strip() + "\n", style="dim")
    called = []
    for word in words(answer.pieces):
        for piece in word.pieces:
            line.append(piece.text, style=_STYLES[min(piece.source, len(_STYLES) - 1)] or "not dim")
        if any(piece.source for piece in word.pieces):
            mean = word.mean_p_defer
            text = "".join(piece.text for piece in word.pieces).strip()
            called.append(text if mean is None else f"{text} ({mean:.2f})")
    if called:
        line.append(f"\n  by {', '.join(writers[1:])}, mean p_defer: {', '.join(called)}", style="dim italic")
    console.print(line)


def _table(table) -> RichTable:
    rich = RichTable(title=Text(table.title), caption=Text(table.note), title_justify="left", caption_justify="left")
    for i, column in enumerate(table.columns):
        numbers = all(not isinstance(row[i], str) for row in table.rows)
        rich.add_column(Text(column), justify="right" if numbers else "left")
    for row in table.rows:
        rich.add_row(*(Text(shown(cell)) for cell in row))
    return rich
