"""What a report holds. Last stage of the pipeline (... -> generation -> evaluation -> report); every writer reads this.

Plain data: the caller fills it in from a run's files, and html, markdown, terminal and plots only show it.
"""

from dataclasses import dataclass

Cell = str | float | int | None

UNSURE = 0.5  # a token to which its writer gave less is one to check


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
    note: str = ""
    diagonal: bool = False  # dashed, from (0, 0) to (1, 1), where x and y are equal


@dataclass(frozen=True)
class Bars:
    """A plot of a share, from 0 to 1, for each of several kinds, first kind on top."""

    title: str
    x_label: str
    bars: tuple[tuple[str, float | None, str], ...]  # name, share (None: there is nothing), what stands beside it
    note: str = ""


Plot = Curve | Bars


@dataclass(frozen=True)
class View:
    """What one model held likely where a token was written."""

    candidates: tuple[tuple[str, float], ...]  # its likeliest tokens with their probabilities, best first
    written: float  # probability of the token that was written
    entropy: float  # nats


@dataclass(frozen=True)
class Piece:
    """One written token."""

    text: str
    source: int  # who wrote it: 0 the base, 1..M an expert
    p_defer: float | None  # None without a gate
    views: tuple[View, ...] = ()  # the base's, then each expert's; empty where no model was asked again

    @property
    def confidence(self) -> float | None:
        """Probability that its writer gave it; None where no model was asked again."""
        return self.views[self.source].written if self.views else None

    @property
    def unsure(self) -> bool:
        """Whether its writer held it less likely than not."""
        return self.confidence is not None and self.confidence < UNSURE

    @property
    def to_check(self) -> bool:
        """Whether a reader should look twice: an expert was called for it, or its writer was unsure."""
        return self.source > 0 or self.unsure


@dataclass(frozen=True)
class Answer:
    """A prompt and what was written."""

    prompt: str
    pieces: tuple[Piece, ...]
    reference: str | None
    correct: bool | None  # None where nothing grades it
    threshold: float | None
    alone: str | None = None  # what the base writes by itself; None where it was not asked
    alone_correct: bool | None = None

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def by_experts(self) -> int:
        """How many tokens the experts wrote."""
        return sum(piece.source > 0 for piece in self.pieces)

    @property
    def outcome(self) -> str | None:
        """What experts changed: "better" or "worse" where one of team and base alone is right, else "same".

        Where nothing grades them: "differs" or "same" by the text. None where the base was not asked.
        """
        if self.alone is None:
            return None
        if self.correct is None or self.alone_correct is None:
            return "same" if self.alone == self.text else "differs"
        if self.correct == self.alone_correct:
            return "same"
        return "better" if self.correct else "worse"


@dataclass(frozen=True)
class Excerpt:
    """A part of an answer that shows something."""

    title: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading of its own."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    examples: tuple[Excerpt, ...] = ()


@dataclass(frozen=True)
class Report:
    """All of it.

    Raises:
      ValueError: a token by a writer who has no name, or views of more or fewer models than there are writers.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]  # the results, which come first
    curves: tuple[Plot, ...]  # their plots
    answers: tuple[Answer, ...]
    writers: tuple[str, ...]  # name of the base, then of each expert
    sections: tuple[Section, ...] = ()  # what stands behind results and answers

    def __post_init__(self):
        """Checks the writers, whom answers name by number."""
        shown = [answer.pieces for answer in self.answers]
        shown += [example.pieces for section in self.sections for example in section.examples]
        pieces = [piece for group in shown for piece in group]
        last = max((piece.source for piece in pieces), default=0)
        if last >= len(self.writers):
            raise ValueError(f"a token is by writer {last}, but the writers are {self.writers!r}")
        views = {len(piece.views) for piece in pieces} - {0, len(self.writers)}
        if views:
            raise ValueError(f"a token has views of {min(views)} models, but the writers are {self.writers!r}")

    @property
    def plots(self) -> tuple[Plot, ...]:
        """Every plot, in the order in which the report shows them."""
        return (*self.curves, *(plot for section in self.sections for plot in section.plots))


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
