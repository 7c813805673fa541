"""What a report holds. Last stage of the pipeline (... -> generation -> evaluation -> report); every writer reads this.

Plain data: the caller fills it in from a run's files, and html, markdown, terminal and plots only show it.
"""

from dataclasses import dataclass

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table with a title, and a note on how its numbers came about.

    Raises:
      ValueError: a row with more or fewer cells than there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self):
        """Checks the rows, which a writer could else cut off silently."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, but a row is {row!r}")

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column, whether it holds numbers only; such columns are set flush right."""
        return tuple(
            bool(self.rows) and all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))
        )

    @property
    def shown(self) -> tuple[tuple[str, ...], ...]:
        """The cells as text; the floats of a column have equally many decimals, so that their points line up."""
        columns = [_shown(tuple(row[i] for row in self.rows)) for i in range(len(self.columns))]
        return tuple(zip(*columns))


@dataclass(frozen=True)
class Curve:
    """A plot: named lines through points in order, and single named points; each point is (x, y)."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]
    points: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Piece:
    """One written token."""

    text: str
    source: int  # who wrote it: 0 the base, 1..M an expert
    p_defer: float | None  # None without a gate


@dataclass(frozen=True)
class Answer:
    """A prompt and what was written."""

    prompt: str
    pieces: tuple[Piece, ...]
    reference: str | None
    correct: bool | None  # None where nothing grades it
    threshold: float | None

    @property
    def by_experts(self) -> int:
        """How many tokens the experts wrote."""
        return sum(piece.source > 0 for piece in self.pieces)


@dataclass(frozen=True)
class Report:
    """All of it.

    Raises:
      ValueError: a token by a writer who has no name.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    curves: tuple[Curve, ...]
    answers: tuple[Answer, ...]
    writers: tuple[str, ...]  # name of the base, then of each expert

    def __post_init__(self):
        """Checks the writers, whom answers name by number."""
        last = max((piece.source for answer in self.answers for piece in answer.pieces), default=0)
        if last >= len(self.writers):
            raise ValueError(f"a token is by writer {last}, but the writers are {self.writers!r}")


def _shown(cells: tuple[Cell, ...]) -> list[str]:
    """A column's cells as text; a dash where there is nothing."""
    floats = [f"{cell:g}" for cell in cells if isinstance(cell, float)]
    decimals = max((len(text.partition(".")[2]) for text in floats), default=0)
    aligned = all(text.lstrip("-").replace(".", "", 1).isdigit() for text in floats)  # no exponent, inf or nan

    def show(cell: Cell) -> str:
        if cell is None:
            return "–"
        if isinstance(cell, float):
            return f"{cell:,.{decimals}f}" if aligned else f"{cell:g}"
        return f"{cell:,}" if isinstance(cell, int) else cell

    return [show(cell) for cell in cells]
