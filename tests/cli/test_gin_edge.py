"""Gin files and bindings: what is wrong in them is named by file and line, and what they gave can be written back."""

import os

import gin
import pytest

from colm_jax.calibration.threshold import Calibration
from colm_jax.cli import gin_edge
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.pipeline.config import RunConfig
from colm_jax.training.config import Training


@gin.configurable("Training")
def gins(epochs=None, batch_size=None, seed=None):
    """What gin itself binds."""
    return epochs


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


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("include 'common.gin'\nTraining.epochs = 5\n", 5),
        ("Training.epochs = 5\ninclude 'common.gin'\n", 1),
        ("include 'common.gin'\ninclude 'deep/other.gin'\n", 3),
        ("include 'deep/other.gin'\ninclude 'common.gin'\n", 1),
        ("Training.epochs = %E\nE = 4\ninclude 'common.gin'\nTraining.seed = 0\n", 1),
    ],
)
def test_includes_are_read_where_they_stand_as_gin_does(tmp_path, monkeypatch, text, epochs):
    (tmp_path / "deep").mkdir()
    for name, content in {
        "run.gin": text,
        "common.gin": "Training.epochs = 1\n",
        "deep/other.gin": "include 'beside.gin'\nTraining.epochs = 3\n",
        "deep/beside.gin": "Training.epochs = 2\nTraining.batch_size = 16\n",
    }.items():
        (tmp_path / name).write_text(content)
    gin_edge.parse([str(tmp_path / "run.gin")], [])
    assert gin_edge.make(Training).epochs == epochs
    (tmp_path / "beside.gin").symlink_to("deep/beside.gin")  # gin looks in the working directory only
    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    gin.parse_config_file("run.gin")
    assert gins() == epochs
    gin.clear_config()


def test_bindings_of_flags_win_over_all_files_wherever_they_stand(gin_file, capsys):
    files = ["--gin_file", gin_file("Training.epochs = 2\n", "a.gin"), "--gin_file", gin_file("Training.epochs = 3\n")]
    run = ["--base", "b", "--expert", "e", "--data", "d", "--bare"]
    assert main(["config", "--gin.Training.epochs=4", *files, *run]) == 0
    assert "Training.epochs = 4" in capsys.readouterr().out
    assert main(["config", *files[2:], *files[:2], *run]) == 0
    assert "Training.epochs = 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("# naïve\nTraining.epochs = 7\n".encode("latin-1"), r"run.gin:1: not UTF-8 text \(byte 0xef\)"),
        ("Training.epochs = 7\n".encode("utf-16"), "run.gin: is UTF-16, not UTF-8 text; save it as UTF-8"),
        ("Training.epochs = 7\n".encode("utf-16-le"), "run.gin: is UTF-16 or binary"),
    ],
)
def test_files_of_another_encoding_are_one_line_also_where_they_are_included(tmp_path, gin_file, data, said):
    (tmp_path / "run.gin").write_bytes(data)
    for file in (tmp_path / "run.gin", gin_file("include 'run.gin'\n", "outer.gin")):
        with pytest.raises(UserError, match=said):
            gin_edge.parse([str(file)], [])


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    (tmp_path / "run.gin").write_bytes("\ufeffTraining.epochs = 7\r\nTraining.seed = (\r\n 3)\r\n".encode())
    gin_edge.parse([str(tmp_path / "run.gin")], [])
    made = gin_edge.make(Training)
    assert (made.epochs, made.seed) == (7, 3)


def test_what_is_no_file_is_said_and_circles_of_includes_end(tmp_path, gin_file):
    os.mkfifo(tmp_path / "pipe.gin")
    (tmp_path / "a.gin").write_text("\ninclude 'b.gin'\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    for name, said in (
        ("pipe.gin", "pipe.gin: is a pipe, not a file"),
        (".", "is a directory, not a file"),
        ("none.gin", "none.gin: no such file"),
        ("a.gin", "b.gin:1: include 'a.gin': .*a.gin includes itself"),
    ):
        with pytest.raises(UserError, match=said):
            gin_edge.parse([str(tmp_path / name)], [])
    with pytest.raises(UserError, match=r"run\.gin:2: include 'none\.gin': no such file"):
        gin_edge.parse([gin_file("\ninclude 'none.gin'\n")], [])
    with pytest.raises(UserError, match=r"run.gin:1: include '\.': is a directory, not a file"):
        gin_edge.parse([gin_file("include '.'\n")], [])


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
