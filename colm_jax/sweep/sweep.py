"""`colm sweep` as a whole: the trials run, a live table of them, and the files of results."""

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
from colm_jax.sweep.runner import State, run_trials

CSV, SUMMARY = "results.csv", "summary.json"
_SHOWN = 24  # rows of the live table, at most


def run_sweep(states: Sequence[State], sweep: Sweep, out: Path, title: str) -> dict[str, Any]:
    """Runs what is not done and writes results.csv, summary.json and a report into `out`, anew after each trial."""
    before = [""] * len(states)
    shows = console.errors.is_terminal
    with Live(console=console.errors, refresh_per_second=4) if shows else nullcontext() as live:

        def told() -> None:
            nonlocal before
            now = [state.state for state in states]
            if live is not None:
                live.update(_table(states))
            if now == before:
                return
            for state, was in zip(states, before):
                if live is None and state.state != was and state.state != "waiting":
                    console.note(_line(state))
            finished = [state for state in now if state in ("done", "failed")]
            if finished != [state for state in before if state in ("done", "failed")]:
                _write(states, sweep, out)
            before = now

        with _stopping_trials():
            run_trials(states, sweep, told)
    results = Results(states, sweep)
    report = results.report(title)
    write_files(report, out / "report")
    show_results(report, console.errors)
    for path in (out / CSV, out / "report" / "report.html"):
        console.note(str(path))
    return summary(results)


@contextmanager
def _stopping_trials() -> Iterator[None]:
    """Within it, SIGTERM ends the sweep as Ctrl-C does: its trials are stopped too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_trial(state: State, sweep: Sweep) -> dict[str, Any]:
    """Runs one trial, as one job of a cluster; the sweep's own command collects the results afterwards."""
    with _stopping_trials():
        run_trials([state], sweep, lambda: None)
    console.note(_line(state))
    return {"trial": state.trial.name, "failed": [state.trial.name] if state.state == "failed" else []}


def _write(states: Sequence[State], sweep: Sweep, out: Path) -> None:
    results = Results(states, sweep)
    write_text(out / CSV, results.csv())
    write_json(out / SUMMARY, summary(results))


def _line(state: State) -> str:
    """What became of a trial, where there is no live table."""
    time = f" in {state.seconds:.0f} s" if state.state == "done" else ""
    return f"{state.trial.name}: {state.state}{time}{f' ({state.error})' if state.state == 'failed' else ''}"


def _table(states: Sequence[State]) -> RichTable:
    """Counts, what runs, what failed, and the trials nearest to them."""
    counts = {kind: sum(state.state == kind for state in states) for kind in ("done", "running", "waiting", "failed")}
    table = RichTable(
        title=", ".join(f"{count} {kind}" for kind, count in counts.items() if count), title_justify="left"
    )
    for column in ("trial", "state", "seconds", "at"):
        table.add_column(column, no_wrap=True)
    urgent = ("running", "failed", "done", "waiting")
    latest = [i for state in urgent for i in _of_state(states, state)[:: -1 if state == "done" else 1]]
    rows = sorted(latest[:_SHOWN])
    for state in (states[i] for i in rows):
        at = {"running": state.doing, "failed": state.error}.get(state.state, "")
        table.add_row(state.trial.name, state.state, f"{state.seconds:.0f}" if state.seconds else "", at)
    if len(states) > len(rows):
        table.add_row(f"... and {len(states) - len(rows)} more", "", "", "")
    return table


def _of_state(states: Sequence[State], wanted: str) -> list[int]:
    return [i for i, state in enumerate(states) if state.state == wanted]
