"""Gin files and bindings: what is wrong in them is named by file and line, and what they gave can be written back."""

import pytest

from colm_jax.calibration.threshold import Calibration
from colm_jax.cli import gin_edge
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.pipeline.config import RunConfig
from colm_jax.training.config import Training


@pytest.fixture
def gin_file(tmp_path):
    def write(text, name="run.gin"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Training.learning_rat = 1e-4", r"run.gin:2: Training.learning_rat: .* did you mean learning_rate\?"),
        ("Trainig.epochs = 1", r"run.gin:2: Trainig.epochs: no settings of the name Trainig; did you mean Training\?"),
        ("Training.learning_rate = '1e-4'", "run.gin:2: .* must be a number; write it without quotes"),
        ("Training.epochs = 1.5", "run.gin:2: Training.epochs = 1.5: must be a whole number"),
        ("Training.packing = 1", "run.gin:2: Training.packing = 1: must be True or False"),
        ("Run.mesh = (1, 2)", "run.gin:2: .* must be a tuple of 3: a whole number, a whole number, a whole number"),
        ("Run.experts = 'one'", "run.gin:2: .* must be a tuple, each a string"),
        ("Run.training = 1", "run.gin:2: Run.training: its settings are bound one by one, as in Training.NAME"),
        ("Run.base = %BAS", r"run.gin:2: %BAS has no value"),
        ("Run.base = %A\nA = %B\nB = %A", "is defined by itself"),
        ("Training.epochs = 1\n\nTraining.epochs = 2", r"run.gin:4: Training.epochs is bound twice .*run.gin:2"),
        ("x/Training.epochs = 1", "run.gin:2: .*scopes are not used here"),
        ("Training.epochs = @f()", "run.gin:2: @f: settings are plain values"),
        ("import os", "run.gin:2: import os: nothing has to be imported"),
        ("include 'other.gin'", "run.gin:2: include 'other.gin': no such file"),
        ("include 'run.gin'", "includes itself"),
        ("Training.epochs 1", "run.gin:2: "),
        ("Training.epochs = (1,", "run.gin:"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(gin_file, line, message):
    with pytest.raises(UserError, match=message):
        gin_edge.parse([gin_file(f"# a comment\n{line}\n")], [])


def test_values_out_of_range_name_the_line_too(gin_file):
    gin_edge.parse([gin_file("Training.objective = 'sft'\nTraining.trainable = 'gate'\n")], [])
    with pytest.raises(UserError, match=r"trainable at .*run.gin:2, objective at .*run.gin:1|objective at .*run.gin:1"):
        gin_edge.make(Training)


def test_required_values_are_asked_for(gin_file):
    gin_edge.parse([gin_file("Run.base = %gin.REQUIRED\nRun.data = 'd'\n")], [])
    with pytest.raises(UserError, match=r"run.gin:1: Run.base has no value; give --base MODEL"):
        gin_edge.make(RunConfig, experts=("e",))
    assert gin_edge.make(RunConfig, experts=("e",), base="b").base == "b"
    gin_edge.parse([], [])
    with pytest.raises(UserError, match=r"Run.base has no value"):
        gin_edge.make(RunConfig, experts=("e",))


def test_the_later_wins_and_macros_are_filled_in_last(gin_file):
    one = gin_file("RATE = 1e-4\nTraining.learning_rate = %RATE\nTraining.epochs = 3\n", "one.gin")
    two = gin_file("include 'one.gin'\nTraining.epochs = 4\n", "two.gin")
    gin_edge.parse([two], ["RATE=5e-4", "Training.batch_size=16"])
    made = gin_edge.make(Training, seed=9)
    assert (made.learning_rate, made.epochs, made.batch_size, made.seed) == (5e-4, 4, 16, 9)
    gin_edge.parse([two, one], [])
    assert gin_edge.make(Training).epochs == 3


def test_lists_are_tuples_and_whole_numbers_are_numbers(gin_file):
    gin_edge.parse([gin_file("Calibration.rates = [0.1, 0.2]\nTraining.learning_rate = 1\n")], [])
    assert gin_edge.make(Calibration).rates == (0.1, 0.2)
    assert gin_edge.make(Training).learning_rate == 1.0


def test_config_prints_a_file_that_gives_the_same_settings(gin_file, capsys):
    run = gin_file("Training.learning_rate = 5e-4\nRun.strategies = ('defer', 'compose')\n")
    flags = ["--base", "b", "--expert", "e", "--expert", "f", "--data", "it's", "--mesh", "1,2,1", "--objective", "em"]
    assert main(["config", "--gin_file", run, *flags, "--gin.Lora.rank=4"]) == 0
    shown = capsys.readouterr().out
    for part in ("# flag", "# default", f"# {run}:1", "# --gin.Lora.rank=4"):
        assert part in shown
    assert main(["config", "--gin_file", gin_file(shown, "again.gin"), "--bare"]) == 0
    bare = capsys.readouterr().out
    assert "Run.mesh = (1, 2, 1)" in bare and "Training.objective = 'em'" in bare and "Lora.rank = 4" in bare
    assert [line.partition("  #")[0].rstrip() for line in shown.splitlines()] == bare.splitlines()


def test_mistakes_are_one_line_and_exit_status_2(gin_file, capsys):
    assert main(["config", "--gin_file", gin_file("Training.epoch = 1\n")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("colm: ") and "run.gin:1: Training.epoch: " in line
