"""`colm sweep` on a tiny pair: stages in common once, results, and commands for a cluster."""

import csv
import json
import shlex

import numpy as np
import pytest

from colm_jax.cli.main import main
from colm_jax.settings.sweep import Sweep
from colm_jax.sweep.results import Results, summary
from colm_jax.sweep.runner import TrialState
from colm_jax.sweep.trials import Trial
from tests.pipeline.test_run import write_lines


@pytest.fixture
def sweep_file(tmp_path, tiny_model):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh "), rng.integers(8, 30))) for _ in range(20)]
    lines = [{"prompt": text[:5], "completion": text[5:]} for text in texts]
    (tmp_path / "em.gin").write_text("Training.trainable = 'gate'\nTraining.objective = 'em'\n")
    (tmp_path / "gate.gin").write_text("Training.trainable = 'gate'\n")
    (tmp_path / "sweep.gin").write_text(f"""
Run.base = {str(tiny_model("base"))!r}
Run.experts = ({str(tiny_model("expert", seed=1))!r},)
Run.data = {write_lines(tmp_path / "train.jsonl", lines[:12])!r}
Run.dev = {write_lines(tmp_path / "dev.jsonl", lines[12:])!r}
Run.task = "exact"
Run.max_new_tokens = 4
Run.strategies = ("base", "untrained")
Calibration.rates = (0.5,)
Calibration.max_new_tokens = 4
Sweep.grid = {{"gin_file": ("gate.gin", "em.gin")}}
""")
    return str(tmp_path / "sweep.gin")


def test_a_sweep_computes_what_trials_share_once(tmp_path, sweep_file, capsys):
    command = ["sweep", "--gin_file", sweep_file, "--out", str(tmp_path / "out"), "--parallel", "2"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["trials"], found["done"], found["failed"]) == (2, 2, [])
    stages = tmp_path / "out/stages"
    once = ("tokens", "scores/base", "scores/expert-1", "labels", "hidden", "gate")
    assert {name: len([p for p in (stages / name).iterdir() if p.is_dir()]) for name in once} == dict.fromkeys(once, 1)
    assert len([p for p in (stages / "train").iterdir() if p.is_dir()]) == 2
    links = [tmp_path / f"out/trials/{name}/scores/base" for name in ("gate", "em")]
    assert links[0].is_symlink() and links[0].resolve() == links[1].resolve()
    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert [(row["trial"], row["strategy"], row["state"]) for row in rows] == [
        (name, strategy, "done") for name in ("gate", "em") for strategy in ("base", "untrained")
    ]
    assert (tmp_path / "out/report/report.html").exists()
    config = (tmp_path / "out/trials/em/operative_config.gin").read_text()
    assert "Training.objective = 'em'" in config
    before = (tmp_path / "out/trials/gate/trial.json").stat().st_mtime_ns
    assert main(command) == 0  # everything is done
    assert (tmp_path / "out/trials/gate/trial.json").stat().st_mtime_ns == before


def test_commands_are_one_trial_each(tmp_path, sweep_file, capsys):
    out = str(tmp_path / "my sweep")
    assert main(["sweep", "--gin_file", sweep_file, "--out", out, "--gin.Training.seed=3", "--commands"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    common = ["colm", "sweep", f"--gin_file={sweep_file}", "--gin.Training.seed=3", "--out", out, "--trial"]
    assert lines == [[*common, "gate"], [*common, "em"]]
    assert main([*lines[0][1:-1], "none"]) == 2
    assert "--trial none: no such trial" in capsys.readouterr().err


def test_trials_that_no_run_could_have_stop_the_sweep_before_it_begins(tmp_path, sweep_file, capsys):
    flags = ["--gin.Sweep.grid={'Training.epochs': (1, 0)}", "--out", str(tmp_path / "out")]
    assert main(["sweep", "--gin_file", sweep_file, *flags]) == 2
    assert (
        "trial epochs=0: --gin.Training.epochs=0: Training.epochs must be a whole number from 1"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_failed_trial_is_reported_and_the_exit_status_is_1(tmp_path, sweep_file, capsys):
    flags = ["--gin.Sweep.grid={'Run.data': ('missing.jsonl',)}", "--out", str(tmp_path / "out")]
    assert main(["sweep", "--gin_file", sweep_file, *flags]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["failed"] == ["data=missing.jsonl"]
    assert "data=missing.jsonl: failed (exit status 2: colm: missing.jsonl" in captured.err
    (row,) = csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines())
    assert (row["trial"], row["state"], row["strategy"]) == ("data=missing.jsonl", "failed", "")


def results(tmp_path, found, **settings):
    """Results of made-up trials: name -> (axes, {strategy: grades})."""
    states = []
    for name, (axes, grades) in found.items():
        directory = tmp_path / name
        (directory / "evaluate").mkdir(parents=True)
        (directory / "evaluate/grades.json").write_text(json.dumps(grades))
        task = {strategy: {"accuracy": sum(g) / len(g), "deferral_rate": 0.5} for strategy, g in grades.items()}
        evaluation = {"text": {"team": 1.0}, "task": {"name": "exact", **task}}
        (directory / "trial.json").write_text(json.dumps({"key": "k", "seconds": 1, "evaluation": evaluation}))
        states.append(TrialState(Trial(name, axes, (), ()), directory, "k", [], status="done"))
    axes = {key: tuple(dict.fromkeys(s.trial.axes[key] for s in states)) for key in states[0].trial.axes}
    return Results(states, Sweep(grid=axes, **settings))


def test_means_over_repeats_and_the_best_against_the_next(tmp_path):
    good, bad = [1] * 9 + [0], [1] * 4 + [0] * 6
    found = {
        f"{rate}-{seed}": ({"rate": rate, "seed": seed}, {"defer": grades[seed:] + grades[:seed]})
        for rate, grades in ((0.1, bad), (0.2, good))
        for seed in (0, 1)
    }
    tested = results(tmp_path, found, repeats=("seed",))
    best, second = tested.groups()
    assert (best.axes, best.mean("accuracy"), best.spread("accuracy")) == ({"rate": 0.2}, 0.9, 0.0)
    assert len(best.rows) == 2
    difference = tested.difference(second, best)
    assert difference.difference == pytest.approx(0.5)
    assert (difference.better, difference.worse) == (10, 0)
    assert summary(tested)["best"]["trials"] == ["0.2-0", "0.2-1"]
    names = {plot.title for plot in tested.report("x").curves}
    assert names == {"accuracy by rate", "accuracy by seed"}


def test_the_lowest_is_best_where_it_is_to_be_least(tmp_path):
    found = {str(rate): ({"rate": rate}, {"defer": [rate, 0.0]}) for rate in (0.2, 0.6)}
    assert results(tmp_path, found, minimise=True).groups()[0].axes == {"rate": 0.2}
    (tmp_path / "again").mkdir()
    assert results(tmp_path / "again", found).groups()[0].axes == {"rate": 0.6}
