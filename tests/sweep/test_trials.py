"""Which trials a sweep has, and what they are called."""

import pytest

from colm_jax.errors import UserError
from colm_jax.settings.sweep import Sweep
from colm_jax.sweep.trials import make_trials

RATE, SEED = "Training.learning_rate", "Training.seed"


def test_a_grid_is_every_combination():
    trials = make_trials(Sweep(grid={RATE: (1e-4, 2e-5), SEED: (0, 1, 2)}), [])
    assert [trial.name for trial in trials][:2] == ["learning_rate=0.0001,seed=0", "learning_rate=0.0001,seed=1"]
    assert len(trials) == 6
    assert trials[-1].bindings == (f"{RATE}=2e-05", f"{SEED}=2")
    assert trials[-1].axes == {RATE: 2e-5, SEED: 2}


def test_points_bind_together_and_cross_the_grid():
    points = ({"name": "small", "BASE": "a", SEED: 1}, {"BASE": "b", SEED: 2})
    trials = make_trials(Sweep(points=points, grid={RATE: (0.1,)}), [])
    assert [trial.name for trial in trials] == ["small,learning_rate=0.1", "1,learning_rate=0.1"]
    assert trials[0].bindings == ("BASE='a'", f"{SEED}=1", f"{RATE}=0.1")
    assert trials[0].axes == {"point": "small", RATE: 0.1}


def test_samples_are_drawn_in_their_range_and_stay_when_more_are_drawn():
    drawn = {
        RATE: ("log_uniform", 1e-5, 1e-3),
        "Training.weight_decay": ("uniform", 0.0, 0.1),
        "Training.epochs": ("integer", 1, 3),
        "Training.objective": ("choice", "em", "marginal"),
    }
    few, many = (make_trials(Sweep(random=drawn, samples=n, seed=7), []) for n in (3, 40))
    assert [trial.axes for trial in few] == [trial.axes for trial in many][:3]
    rates = [trial.axes[RATE] for trial in many]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates) and len(set(rates)) == 40
    assert 8 < sum(rate < 1e-4 for rate in rates) < 32  # even in the logarithm
    assert {trial.axes["Training.epochs"] for trial in many} == {1, 2, 3}
    assert {trial.axes["Training.objective"] for trial in many} == {"em", "marginal"}
    assert make_trials(Sweep(random=drawn, samples=3, seed=8), [])[0].axes != few[0].axes


def test_gin_files_are_found_beside_the_sweep(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/weak.gin").write_text("")
    sweep = Sweep(grid={"gin_file": ("methods/weak.gin",), SEED: (0,)})
    (trial,) = make_trials(sweep, [tmp_path])
    assert trial.files == (tmp_path / "methods/weak.gin",)
    assert (trial.name, trial.bindings) == ("weak,seed=0", (f"{SEED}=0",))
    with pytest.raises(UserError, match=r"gin_file 'methods/weak.gin': no such file"):
        make_trials(sweep, [tmp_path / "methods"])


def test_long_and_strange_values_make_short_names_that_differ():
    values = tuple("/data/" + "x" * 200 + end for end in ("/a b'", "/a b$"))
    names = [trial.name for trial in make_trials(Sweep(grid={"Run.base": values}), [])]
    assert len(set(names)) == 2
    assert all(len(name) <= 100 and name.replace("=", "").replace("-", "").replace("_", "").isalnum() for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing is swept"),
        ({"grid": {RATE: ()}}, "has no values"),
        ({"grid": {RATE: (1.0, 1.0)}}, "two trials are the same"),
        ({"grid": {RATE: (1.0,)}, "points": ({RATE: 2.0},)}, "swept in two ways"),
        ({"grid": {RATE: (1.0,)}, "repeats": (SEED,)}, "Training.seed is not swept"),
        ({"random": {RATE: ("normal", 0, 1)}, "samples": 2}, "begins with one of uniform"),
        ({"random": {RATE: ("log_uniform", 0, 1)}, "samples": 2}, "above 0 for log_uniform"),
        ({"random": {RATE: ("uniform", 1)}, "samples": 2}, "needs its lowest and its highest"),
        ({"random": {RATE: ("choice",)}, "samples": 2}, "choice needs values"),
        ({"random": {RATE: ("uniform", 0, 1)}}, "Sweep.samples 0: at least 1"),
        ({"grid": {RATE: (1.0,)}, "parallel": 0}, "parallel must be a whole number of at least 1"),
        ({"grid": {RATE: (1.0,)}, "memory_gib": 0.0}, "memory_gib must be a number above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_trials(Sweep(**settings), [])
