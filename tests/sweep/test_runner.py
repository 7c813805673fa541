"""How trials are run: several at a time, tried again, taken up; with small programs in place of `colm run`."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from colm_jax.settings.sweep import Sweep
from colm_jax.storage import locked
from colm_jax.sweep import runner
from colm_jax.sweep.runner import RESULT, TrialState, run_trials
from colm_jax.sweep.trials import Trial

SWEEP = Sweep(grid={"Training.seed": (0,)}, parallel=2, memory_gib=0.01)

# A trial that says when it began and ended, and does as its second argument says.
PROGRAM = """
import json, pathlib, sys, time
out, what = pathlib.Path(sys.argv[1]), sys.argv[2]
tries = out / "tries"
tries.write_text(str(int(tries.read_text() if tries.exists() else 0) + 1))
print("stage: done")
if what == "refuse":
    print("colm: no such file", file=sys.stderr)
    sys.exit(2)
if what == "crash" or (what == "crash once" and tries.read_text() == "1"):
    sys.exit("boom")
begun = time.time()
time.sleep(0.3 if what == "work" else 0)
(out / "evaluate").mkdir(exist_ok=True)
(out / "evaluate/evaluation.json").write_text(json.dumps({"text": {"team": 1.0, "begun": begun, "ended": time.time()}}))
"""


@pytest.fixture
def state(tmp_path):
    def make(name, what="work", key="k"):
        directory = tmp_path / "trials" / name
        trial = Trial(name, {"name": name}, (), ())
        return TrialState(trial, directory, key, [sys.executable, "-c", PROGRAM, str(directory), what])

    return make


def tries(state):
    return int((state.directory / "tries").read_text())


def test_trials_run_side_by_side_and_are_not_run_again(state):
    states = [state(str(i)) for i in range(4)]
    seen = set()
    run_trials(states, SWEEP, lambda: seen.add(sum(s.status == "running" for s in states)))
    assert max(seen) == 2
    assert [s.status for s in states] == ["done"] * 4
    texts = [s.result["evaluation"]["text"] for s in states]
    assert any(a["begun"] < b["begun"] < a["ended"] for a in texts for b in texts)  # at the same time
    again = [state(str(i)) for i in range(4)]
    run_trials(again, SWEEP, lambda: None)
    assert [(s.status, tries(s)) for s in again] == [("done", 1)] * 4
    changed = state("0", key="other")  # other settings or inputs: the result no longer counts
    run_trials([changed], SWEEP, lambda: None)
    assert tries(changed) == 2


def test_a_crashed_trial_is_retried_and_one_with_invalid_input_is_not(state):
    crash, once, refuse = state("a", "crash"), state("b", "crash once"), state("c", "refuse")
    run_trials([crash, once, refuse], SWEEP, lambda: None)
    assert [s.status for s in (crash, once, refuse)] == ["failed", "done", "failed"]
    assert [tries(s) for s in (crash, once, refuse)] == [2, 2, 1]
    assert crash.error == "exit status 1: boom"
    assert refuse.error == "exit status 2: colm: no such file"
    assert not (crash.directory / RESULT).exists()


def test_memory_bounds_how_many_run(monkeypatch):
    monkeypatch.setattr(runner, "_accelerator", lambda: False)
    wide = Sweep(grid={"Training.seed": (0,)}, parallel=8)
    assert runner._places(wide, [], 64.0) == 1  # the first shows what one needs
    assert runner._places(wide, [10.0, 20.0], 64.0) == 3
    assert runner._places(wide, [100.0], 64.0) == 1
    assert runner._places(wide, [1.0], 64.0) == 8
    told = Sweep(grid={"Training.seed": (0,)}, parallel=8, memory_gib=16.0)
    assert runner._places(told, [], 64.0) == 4


def test_one_at_a_time_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(runner, "_accelerator", lambda: True)
    assert runner._places(Sweep(grid={"Training.seed": (0,)}), [0.1], 64.0) == 1


def test_a_stopped_sweep_stops_its_trials_and_resumes(tmp_path, state):
    program = textwrap.dedent(f"""
        import signal, sys
        from pathlib import Path
        from colm_jax.settings.sweep import Sweep
        from colm_jax.sweep.runner import TrialState, run_trials
        from colm_jax.sweep.trials import Trial

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        out = Path({str(tmp_path / "trials")!r})
        work = "import os, pathlib, sys, time; pid = pathlib.Path(sys.argv[1], 'pid'); "
        work += "pid.write_text(str(os.getpid())); time.sleep(60)"
        command = lambda name: [sys.executable, "-c", work, str(out / name)]
        states = [TrialState(Trial(n, {{}}, (), ()), out / n, "k", command(n)) for n in "ab"]
        run_trials(states, Sweep(grid={{"x": (0,)}}, parallel=2, memory_gib=0.01), lambda: None)
    """)
    sweep = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    pids = [tmp_path / "trials" / name / "pid" for name in "ab"]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(30) == 143
    for path in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    states = [state(name) for name in "ab"]
    run_trials(states, SWEEP, lambda: None)
    assert [json.loads((s.directory / RESULT).read_text())["key"] for s in states] == ["k", "k"]


def test_a_trial_that_another_process_runs_is_left_alone(state):
    mine, others = state("mine"), state("others")
    others.directory.mkdir(parents=True)
    (others.directory / RESULT).write_text("{}")
    with locked(others.directory / runner._LOCK, "it"):
        run_trials([mine, others], SWEEP, lambda: None)
    assert (mine.status, others.status) == ("done", "failed")
    assert f"{others.directory}: in use by process {os.getpid()} on " in others.error
    assert [path.name for path in others.directory.iterdir()] == [RESULT]
    run_trials([others], SWEEP, lambda: None)
    assert others.status == "done"
    assert not (others.directory / runner._LOCK).exists()
