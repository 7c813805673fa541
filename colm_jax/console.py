"""What a person sees while a stage works: one progress bar with time left, on standard error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Output(Console):
    """Standard output. Rich would end the program where the reader ends; here the command line answers that."""

    def on_broken_pipe(self) -> None:
        """Raises the error that is being handled."""
        raise


errors = Console(stderr=True)
output = Output()


class Bar:
    """A progress bar that learns its total on the way."""

    def __init__(self, progress: Progress, task):
        self._progress, self._task = progress, task

    def to(self, done: int, total: int | None = None, note: str = "") -> None:
        """Moves the bar to `done` of `total`."""
        self._progress.update(self._task, completed=done, total=total, note=note)


@contextmanager
def bar(title: str, total: int | None = None, bytes_: bool = False) -> Iterator[Bar]:
    """A bar for one piece of work, in items or in bytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if bytes_ else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=errors) as progress:
        yield Bar(progress, progress.add_task(title, total=total, note=""))


def note(line: str) -> None:
    """One line on standard error, as it is."""
    errors.print(line, markup=False, highlight=False, soft_wrap=True)


def of_step(metrics: Mapping[str, float]) -> str:
    """What a training step says of itself, beside the bar."""
    parts = [f"loss {metrics['loss']:.4f}"]
    if "expected_deferral" in metrics:
        parts.append(f"deferral {metrics['expected_deferral']:.3f}")
    if "responsibility_entropy" in metrics:
        parts.append(f"entropy {metrics['responsibility_entropy']:.3f}")
    parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    if metrics["data_share"] > 0.02:
        parts.append(f"data {metrics['data_share']:.0%}")
    return "  ".join(parts)
