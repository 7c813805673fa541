"""What a report holds; every writer (HTML, Markdown, terminal) shows the same."""

from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table with a title, and a note on how its numbers came about."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """A plot: named lines through points in order, and single named points."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]
    points: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Piece:
    """One written token."""

    text: str
    source: int  # 0 the base, 1..M an expert
    p_defer: float | None


@dataclass(frozen=True)
class Answer:
    """A prompt and what was written."""

    prompt: str
    pieces: tuple[Piece, ...]
    reference: str | None
    correct: bool | None
    threshold: float | None


@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    curves: tuple[Curve, ...]
    answers: tuple[Answer, ...]
    writers: tuple[str, ...]  # name of the base, then of each expert


@dataclass(frozen=True)
class Word:
    """Tokens up to the next white space; tokens may be parts of words."""

    pieces: tuple[Piece, ...]

    @property
    def mean_p_defer(self) -> float | None:
        """Mean over its tokens, those of white space left out; None without a gate."""
        rates = [p.p_defer for p in self.pieces if p.p_defer is not None and (p.text.strip() or len(self.pieces) == 1)]
        return sum(rates) / len(rates) if rates else None


def words(pieces: Sequence[Piece]) -> list[Word]:
    """Groups tokens into words: a token that begins with white space, or follows one that ends in it, begins a word."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        begins = piece.text[:1].isspace() or (groups and groups[-1][-1].text[-1:].isspace())
        if groups and not (begins and any(p.text.strip() for p in groups[-1])):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [Word(tuple(group)) for group in groups]


def shown(cell: Cell) -> str:
    """A cell as text; a dash where there is nothing."""
    return (
        "–"
        if cell is None
        else f"{cell:g}"
        if isinstance(cell, float)
        else f"{cell:,}"
        if isinstance(cell, int)
        else cell
    )
