"""What a person sees while a stage works: one progress bar with time left, on standard error."""

from collections.abc import Iterator
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

errors = Console(stderr=True)
output = Console()


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
