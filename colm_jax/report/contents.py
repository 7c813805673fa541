"""Contents of a report, the last stage of the pipeline (... -> generation -> evaluation -> report).

Plain data: the caller fills it in from a run's files; html, markdown, terminal and plots only show it.
"""

from dataclasses import dataclass

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table with a title and a note on its numbers.

    Raises:
      ValueError: a row whose number of cells differs from the number of columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self):
        """Check the lengths of rows, which a writer could otherwise truncate silently."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, but a row is {row!r}")

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column has only numbers; such columns are right-aligned."""
        return tuple(
            bool(self.rows) and all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))
        )

    @property
    def shown(self) -> tuple[tuple[str, ...], ...]:
        """The cells as text; all floats of a column have the same number of decimals."""
        columns = [_shown(tuple(row[i] for row in self.rows)) for i in range(len(self.columns))]
        return tuple(zip(*columns))


@dataclass(frozen=True)
class Curve:
    """A plot of named lines and single named points; each point is (x, y)."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]
    points: dict[str, tuple[float, float]]
    note: str = ""
    diagonal: bool = False  # whether to draw a dashed line from (0, 0) to (1, 1)


@dataclass(frozen=True)
class Bars:
    """A bar chart of shares from 0 to 1, the first bar on top."""

    title: str
    x_label: str
    bars: tuple[tuple[str, float | None, str], ...]  # name, share (None: no data), label of the bar
    note: str = ""


Plot = Curve | Bars


@dataclass(frozen=True)
class View:
    """One model's distribution at a written token."""

    candidates: tuple[tuple[str, float], ...]  # the most probable tokens with their probabilities, best first
    written: float  # probability of the written token
    entropy: float  # nats


@dataclass(frozen=True)
class Piece:
    """One written token."""

    text: str
    source: int  # the writer: 0 the base, 1..M an expert
    p_defer: float | None  # None without a gate
    # The base's, then each expert's, or the base's alone where experts do not read its tokens; empty if the answer was
    # not scored.
    views: tuple[View, ...] = ()
    risk: float | None = None  # that the answer goes wrong here; None where the team has not learned it
    check: bool = False  # the risk is one of the few that are marked

    @property
    def confidence(self) -> float | None:
        """The writer's probability of the token; None if it did not score the answer."""
        return self.views[self.source].written if self.source < len(self.views) else None


@dataclass(frozen=True)
class ShownAnswer:
    """A prompt and the answer to it."""

    prompt: str
    pieces: tuple[Piece, ...]
    reference: str | None
    correct: bool | None  # None if it is not graded
    threshold: float | None
    alone: str | None = None  # the base's own answer; None if there is none
    alone_correct: bool | None = None

    @property
    def text(self) -> str:
        """The whole text of the answer."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def by_experts(self) -> int:
        """The number of tokens by experts."""
        return sum(piece.source > 0 for piece in self.pieces)

    @property
    def outcome(self) -> str | None:
        """The effect of the experts: "better" or "worse" if only one of team and base alone is right, otherwise "same".

        Without grades: "differs" or "same" by the text. None without the base's own answer.
        """
        if self.alone is None:
            return None
        if self.correct is None or self.alone_correct is None:
            return "same" if self.alone == self.text else "differs"
        if self.correct == self.alone_correct:
            return "same"
        return "better" if self.correct else "worse"


@dataclass(frozen=True)
class ShownExample:
    """An excerpt of an answer, shown as an example."""

    title: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Section:
    """A section of the report, with its own heading."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    examples: tuple[ShownExample, ...] = ()


@dataclass(frozen=True)
class Report:
    """A complete report.

    Raises:
      ValueError: a token by a writer without a name, or a number of views that differs from the number of writers.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]  # the results, shown first
    curves: tuple[Plot, ...]  # plots of the results
    answers: tuple[ShownAnswer, ...]
    writers: tuple[str, ...]  # name of the base, then of each expert
    sections: tuple[Section, ...] = ()  # shown after results and answers

    def __post_init__(self):
        """Check the numbers of writers in answers and examples."""
        shown = [answer.pieces for answer in self.answers]
        shown += [example.pieces for section in self.sections for example in section.examples]
        pieces = [piece for group in shown for piece in group]
        last = max((piece.source for piece in pieces), default=0)
        if last >= len(self.writers):
            raise ValueError(f"a token is by writer {last}, but the writers are {self.writers!r}")
        views = {len(piece.views) for piece in pieces} - {0, 1, len(self.writers)}
        if views:
            raise ValueError(f"a token has views of {min(views)} models, but the writers are {self.writers!r}")

    @property
    def plots(self) -> tuple[Plot, ...]:
        """All plots, in the order of the report."""
        return (*self.curves, *(plot for section in self.sections for plot in section.plots))


def _shown(cells: tuple[Cell, ...]) -> list[str]:
    """Return a column's cells as text; a dash for None."""
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
