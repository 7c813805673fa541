"""Console output: progress bars and notes on standard error, results on standard output."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

Progress = Callable[[int, int], None]  # progress callback(done, total)


class Output(Console):
    """Standard output. On a broken pipe rich would exit; here the command line handles the error."""

    def on_broken_pipe(self) -> None:
        """Re-raise the error that is being handled."""
        raise


errors = Console(stderr=True)
output = Output()


class Bar:
    """A progress bar whose total may become known later."""

    def __init__(self, progress: RichProgress, task):
        self._progress, self._task = progress, task

    def to(self, done: int, total: int | None = None, note: str = "") -> None:
        """Set the bar to `done` of `total`."""
        self._progress.update(self._task, completed=done, total=total, note=note)


@contextmanager
def bar(title: str, total: int | None = None, bytes_: bool = False) -> Iterator[Bar]:
    """Show a progress bar for the block, in items or in bytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if bytes_ else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=errors) as progress:
        yield Bar(progress, progress.add_task(title, total=total, note=""))


def note(line: str) -> None:
    """Print one line to standard error, without markup."""
    errors.print(line, markup=False, highlight=False, soft_wrap=True)


def of_step(metrics: Mapping[str, float]) -> str:
    """Return the metrics of a training step as shown next to the progress bar."""
    parts = [f"loss {metrics['loss']:.4f}"]
    if "expected_deferral" in metrics:
        parts.append(f"deferral {metrics['expected_deferral']:.3f}")
    if "responsibility_entropy" in metrics:
        parts.append(f"entropy {metrics['responsibility_entropy']:.3f}")
    parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    if metrics["data_share"] > 0.02:
        parts.append(f"data {metrics['data_share']:.0%}")
    return "  ".join(parts)
