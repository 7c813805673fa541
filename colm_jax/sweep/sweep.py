"""`colm sweep`: runs the trials with a live table, and writes the files of results."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table as RichTable

from colm_jax import console
from colm_jax.pipeline.reporting import write_files
from colm_jax.report.terminal import show_results
from colm_jax.settings.sweep import Sweep
from colm_jax.storage import write_json, write_text
from colm_jax.sweep.results import Results, summary
from colm_jax.sweep.runner import TrialState, run_trials

CSV, SUMMARY = "results.csv", "summary.json"
_SHOWN = 24  # largest number of rows of the live table


def run_sweep(states: Sequence[TrialState], sweep: Sweep, out: Path, title: str) -> dict[str, Any]:
    """Run the trials that are not done; write results.csv and summary.json after each, and a report at the end."""
    before = [""] * len(states)
    shows = console.errors.is_terminal
    with Live(console=console.errors, refresh_per_second=4) if shows else nullcontext() as live:

        def on_change() -> None:
            nonlocal before
            now = [state.status for state in states]
            if live is not None:
                live.update(_table(states))
            if now == before:
                return
            for state, was in zip(states, before):
                if live is None and state.status != was and state.status != "waiting":
                    console.note(_line(state))
            finished = [status for status in now if status in ("done", "failed")]
            if finished != [status for status in before if status in ("done", "failed")]:
                _write(states, sweep, out)
            before = now

        with _stopping_trials():
            run_trials(states, sweep, on_change)
    results = Results(states, sweep)
    report = results.report(title)
    write_files(report, out / "report")
    show_results(report, console.errors)
    for path in (out / CSV, out / "report" / "report.html"):
        console.note(str(path))
    return summary(results)


@contextmanager
def _stopping_trials() -> Iterator[None]:
    """Let SIGTERM end the sweep as Ctrl-C does, so that its trials are stopped too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_trial(state: TrialState, sweep: Sweep) -> dict[str, Any]:
    """Run one trial, as a job of a cluster; the command without a trial collects the results afterwards."""
    with _stopping_trials():
        run_trials([state], sweep, lambda: None)
    console.note(_line(state))
    return {"trial": state.trial.name, "failed": [state.trial.name] if state.status == "failed" else []}


def _write(states: Sequence[TrialState], sweep: Sweep, out: Path) -> None:
    results = Results(states, sweep)
    write_text(out / CSV, results.csv())
    write_json(out / SUMMARY, summary(results))


def _line(state: TrialState) -> str:
    """Return the line for a trial's new status, for output without a live table."""
    time = f" in {state.seconds:.0f} s" if state.status == "done" else ""
    return f"{state.trial.name}: {state.status}{time}{f' ({state.error})' if state.status == 'failed' else ''}"


def _table(states: Sequence[TrialState]) -> RichTable:
    """Return the live table: counts, then running, failed, latest done and waiting trials."""
    counts = {kind: sum(state.status == kind for state in states) for kind in ("done", "running", "waiting", "failed")}
    table = RichTable(
        title=", ".join(f"{count} {kind}" for kind, count in counts.items() if count), title_justify="left"
    )
    for column in ("trial", "state", "seconds", "at"):
        table.add_column(column, no_wrap=True)
    urgent = ("running", "failed", "done", "waiting")
    latest = [i for status in urgent for i in _with_status(states, status)[:: -1 if status == "done" else 1]]
    rows = sorted(latest[:_SHOWN])
    for state in (states[i] for i in rows):
        at = {"running": state.last_line, "failed": state.error}.get(state.status, "")
        table.add_row(state.trial.name, state.status, f"{state.seconds:.0f}" if state.seconds else "", at)
    if len(states) > len(rows):
        table.add_row(f"... and {len(states) - len(rows)} more", "", "", "")
    return table


def _with_status(states: Sequence[TrialState], status: str) -> list[int]:
    return [i for i, state in enumerate(states) if state.status == status]
