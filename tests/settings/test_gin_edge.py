"""Gin files and bindings: what is wrong in them is named by file and line, and what they gave can be written back."""

import os
import sys
import uuid
from dataclasses import MISSING, fields

import gin
import pytest

from colm_jax.cli.main import main
from colm_jax.errors import UserError
from colm_jax.settings import gin_edge
from colm_jax.settings.calibration import Calibration
from colm_jax.settings.fields import checked, default_of
from colm_jax.settings.models import Model
from colm_jax.settings.references import describe
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import Lora, Training
from colm_jax.training.optimizer import make_schedule


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
        ("Trainig:\n  epochs = 1", r"run.gin:2: Trainig: no settings of this name; did you mean Training\?"),
        (
            "Training.learning_rate = '1e-4'",
            "run.gin:2: .* must be a number of at least 0, got '1e-4'; write it without",
        ),
        ("Training.epochs = 1.5", "run.gin:2: Training.epochs must be a whole number from 1 to .*, got 1.5"),
        ("Training.epochs = 0", "run.gin:2: Training.epochs must be a whole number from 1 to .*, got 0"),
        ("N = 0\nTraining.epochs = %N", "run.gin:3: Training.epochs must be a whole number from 1 to .*, got 0"),
        ("Training.packing = 1", "run.gin:2: Training.packing must be True or False, got 1"),
        (
            "Training.objective = 'emm'",
            "run.gin:2: .* must be one of marginal, em, sft, weak, got 'emm'",
        ),
        ("Model.mesh = (1, 2)", "run.gin:2: .* must be a tuple of 3: a whole number, a whole number, a whole number"),
        ("base/Model.dtype = 'f32'", "run.gin:2: Model.dtype must be one of float32, bfloat16"),
        ("Run.experts = 'one'", "run.gin:2: .* must be a list, each a string"),
        ("Run.training = 1", "run.gin:2: Run.training: its settings are bound one by one, as in Training.NAME"),
        ("Run.base = %BAS", r"run.gin:2: %BAS has no value"),
        ("Run.base = %A\nA = %B\nB = %A", "is defined by itself"),
        ("x/Training.epochs = 1", "run.gin:2: x/Training.epochs: nothing reads this scope; write Training.epochs"),
        ("x/Model.dtype = 'int8'", "run.gin:2: .*: nothing reads this scope; write base/Model or expert/Model"),
        ("Training.epochs = @f()", r"run.gin:2: No configurable matching reference '@f\(\)'.*import its module first"),
        ("import os\nTraining.schedule = @os.nothing", "run.gin:3: Couldn't resolve selector os.nothing"),
        ("import no_such_module", "run.gin:2: import no_such_module: No module named 'no_such_module'"),
        ("optax.sgd.momentun = 1", "run.gin:2: Configurable 'optax.sgd' doesn't have a parameter named 'momentun'"),
        ("include 'other.gin'", "run.gin:2: include 'other.gin': no such file"),
        ("include 'run.gin'", "includes itself"),
        ("Training.epochs 1", "run.gin:2: "),
        ("Training.epochs = (1,", "run.gin:"),
    ],
)
def test_mistakes_are_named_by_file_and_line(gin_file, line, message):
    with pytest.raises(UserError, match=message) as error:
        gin_edge.read([gin_file(f"# a comment\n{line}\n")], [])
    assert "\n" not in str(error.value)


def test_settings_that_do_not_go_together_name_their_lines(gin_file):
    held = gin_edge.read([gin_file("Training.objective = 'sft'\nTraining.trainable = 'gate'\n")], [])
    with pytest.raises(UserError, match=r"objective from .*run.gin:1, trainable from .*run.gin:2"):
        held.make(Training)


def test_required_values_are_asked_for(gin_file):
    held = gin_edge.read([gin_file("Run.base = %gin.REQUIRED\nRun.data = 'd'\nRun.experts = ('e',)\n")], [])
    with pytest.raises(UserError, match=r"run.gin:1: Run.base has no value; give --base MODEL"):
        held.make(RunConfig)
    held.bind("Run", base="b")
    assert held.make(RunConfig).base == "b"
    with pytest.raises(UserError, match=r"Run.base has no value; give --base MODEL, or bind Run.base"):
        gin_edge.read([], []).make(RunConfig)


def test_the_later_wins_and_macros_are_filled_in_last(gin_file):
    one = gin_file("RATE = 1e-4\nTraining.learning_rate = %RATE\nTraining.epochs = 3\n", "one.gin")
    two = gin_file("include 'one.gin'\nTraining.epochs = 4\n", "two.gin")
    held = gin_edge.read([two], ["RATE=5e-4", "Training.batch_size=16"])
    held.bind("Training", seed=9)
    made = held.make(Training)
    assert (made.learning_rate, made.epochs, made.batch_size, made.seed) == (5e-4, 4, 16, 9)
    assert gin_edge.read([two, one], []).make(Training).epochs == 3
    assert gin_edge.read([gin_file("Training.epochs = 1\nTraining.epochs = 2\n")], []).make(Training).epochs == 2


def test_a_flag_that_lacks_the_settings_name_is_refused(gin_file):
    with pytest.raises(UserError, match=r"--gin.epochs=2: nothing reads %epochs; did you mean Training.epochs or"):
        gin_edge.read([], ["epochs=2"])
    with pytest.raises(UserError, match=r"nothing reads %dev; did you mean Run.dev\?"):
        gin_edge.read([gin_file("dev = 'd'\n")], ["dev='e'"])
    gin_edge.read([], ["BASE='b'"])  # as a sweep binds it, whose trials need not all read it
    for text in ("Training.epochs = %epochs", "E = %epochs\nTraining.epochs = %E"):
        assert gin_edge.read([gin_file(f"epochs = 1\n{text}\n")], ["epochs=2"]).make(Training).epochs == 2
    held = gin_edge.read([gin_file("experts = 'e'\nRun.experts = (%experts,)\n")], ["experts='f'"])
    held.bind("Run", base="b", data="d")
    assert held.make(RunConfig).experts == ("f",)


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
    assert gin_edge.read([str(tmp_path / "run.gin")], []).make(Training).epochs == epochs
    (tmp_path / "beside.gin").symlink_to("deep/beside.gin")  # gin looks in the working directory only
    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    gin.parse_config_file("run.gin")
    assert gin.get_configurable("Training")().epochs == epochs


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
            gin_edge.read([str(file)], [])


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    (tmp_path / "run.gin").write_bytes("\ufeffTraining.epochs = 7\r\nTraining.seed = (\r\n 3)\r\n".encode())
    made = gin_edge.read([str(tmp_path / "run.gin")], []).make(Training)
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
            gin_edge.read([str(tmp_path / name)], [])
    with pytest.raises(UserError, match=r"run\.gin:2: include 'none\.gin': no such file"):
        gin_edge.read([gin_file("\ninclude 'none.gin'\n")], [])
    with pytest.raises(UserError, match=r"run.gin:1: include '\.': is a directory, not a file"):
        gin_edge.read([gin_file("include '.'\n")], [])


def test_lists_are_tuples_and_whole_numbers_are_numbers(gin_file):
    held = gin_edge.read([gin_file("Calibration.rates = [0.1, 0.2]\nTraining.learning_rate = 1\n")], [])
    assert held.make(Calibration).rates == (0.1, 0.2)
    assert held.make(Training).learning_rate == 1.0


def test_config_prints_a_file_that_gives_the_same_settings(gin_file, capsys):
    run = gin_file("Training.learning_rate = 5e-4\nRun.strategies = ('defer', 'compose')\n")
    flags = ["--base", "b", "--expert", "e", "--expert", "f", "--data", "it's", "--mesh", "1,2,1", "--objective", "em"]
    assert main(["config", "--gin_file", run, *flags, "--gin.Lora.rank=4"]) == 0
    shown = capsys.readouterr().out
    for part in ("# --base", "# default", f"# {run}:1", "# --gin.Lora.rank=4"):
        assert part in shown
    assert main(["config", "--gin_file", gin_file(shown, "again.gin"), "--bare"]) == 0
    bare = capsys.readouterr().out
    assert "base/Model.mesh = (1, 2, 1)" in bare and "Training.objective = 'em'" in bare and "Lora.rank = 4" in bare
    assert [line.partition("  #")[0].rstrip() for line in shown.splitlines()] == bare.splitlines()
    assert main(["config", "--gin_file", gin_file(bare, "bare.gin"), "--bare"]) == 0
    assert capsys.readouterr().out == bare


def test_mistakes_are_one_line_and_exit_status_2(gin_file, capsys):
    assert main(["config", "--gin_file", gin_file("Training.epoch = 1\n")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("colm: ") and "run.gin:1: Training.epoch: " in line


MODULE = """
import gin
from colm_jax.objectives import marginal_nll

gin.constant(f"{__name__}.SIXTEEN", 16)

def warm_then_flat(rate=1e-3, warmup=10):
    return lambda step: rate

def rising(learning_rate, steps):
    return lambda step: learning_rate * step / steps

def my_loss(gate_logits, base_log_prob, expert_log_probs, mask, scale=1.0):
    total, count = marginal_nll(gate_logits, base_log_prob, expert_log_probs, mask)
    return scale * total, count
"""
USERS_FILE = """
import {module}
include 'common.gin'
RATE = 3e-4
Training.learning_rate = %RATE
Training.batch_size = %{module}.SIXTEEN
Training.optimizer = @optax.adafactor
optax.adafactor.min_dim_size_to_factor = 64
Training.schedule = @{module}.warm_then_flat()
{module}.warm_then_flat.rate = 2e-3
Training.objective = @{module}.my_loss
base/Model.dtype = "bfloat16"
expert/Model.dtype = "int8"
Model.mesh = (1, 2, 1)
"""


@pytest.fixture
def users_file(tmp_path, monkeypatch):
    """A gin file with all that gin's users write, and the name of the module that it imports."""
    module = f"module_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    (tmp_path / "common.gin").write_text("Training.epochs = 3\n")
    (tmp_path / "users.gin").write_text(USERS_FILE.format(module=module))
    monkeypatch.syspath_prepend(tmp_path)
    return str(tmp_path / "users.gin"), module


def test_references_scopes_macros_constants_and_imports_work_as_in_gin(users_file):
    file, module = users_file
    held = gin_edge.read([file], ["Training.packing=False"])
    made = held.make(Training)
    assert (made.learning_rate, made.batch_size, made.epochs, made.packing) == (3e-4, 16, 3, False)
    assert made.schedule.value(5) == 2e-3 and made.schedule.made and not made.optimizer.made
    assert made.objective.value.__wrapped__ is sys.modules[module].my_loss
    assert held.make(Model, "base") == Model("bfloat16", (1, 2, 1))
    assert held.make(Model, "expert") == Model("int8", (1, 2, 1))


def test_the_operative_config_repeats_settings_with_references(users_file, gin_file):
    file, _ = users_file
    held = gin_edge.read([file], [])
    held.bind("Training", seed=5)
    first = [held.make(Training), held.make(Model, "base"), held.make(Model, "expert")]
    again = gin_edge.read([gin_file(held.text(), "operative_config.gin")], [])
    second = [again.make(Training), again.make(Model, "base"), again.make(Model, "expert")]
    assert describe(second) == describe(first)
    assert again.text() == held.text()


def test_a_reference_is_described_by_what_it_computes(users_file):
    file, module = users_file
    same, again, other = (
        describe(gin_edge.read([file], bindings).make(Training))
        for bindings in ([], [], [f"{module}.warm_then_flat.rate=3e-3"])
    )
    assert same == again != other


def test_a_file_for_gin_itself_with_dynamic_registration_works(users_file, gin_file):
    _, module = users_file
    text = f"""from __gin__ import dynamic_registration
from colm_jax.settings import training
import {module}
training.Training.epochs = 7
training.Training.schedule = @{module}.rising
training.Lora.rank = 4
"""
    held = gin_edge.read([gin_file(text)], ["Training.seed=3"])
    made = held.make(Training, lora=held.make(Lora))
    assert (made.epochs, made.seed, made.lora.rank) == (7, 3, 4)
    assert make_schedule(made, 0.5, 10)(5) == 0.25


def test_a_module_beside_the_file_is_found(tmp_path, gin_file):
    module = f"module_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text("def flat():\n    return lambda step: 0.125\n")
    held = gin_edge.read([gin_file(f"import {module}\nTraining.schedule = @{module}.flat()\n")], [])
    assert make_schedule(held.make(Training), 1.0, 10)(3) == 0.125
    assert str(tmp_path) not in sys.path


def test_nothing_of_an_earlier_file_remains(gin_file):
    gin_edge.read([gin_file("Training.epochs = 9\nexpert/Model.dtype = 'int4'\n")], [])
    held = gin_edge.read([], [])
    assert held.make(Training) == Training() and held.make(Model, "expert") == Model()


@pytest.mark.parametrize("name", [*gin_edge.SETTINGS])
def test_every_setting_has_a_help_text_and_a_default_that_is_allowed(name):
    for entry in fields(gin_edge.SETTINGS[name]):
        if "setting" in entry.metadata:
            assert entry.metadata["setting"].help, entry.name
            default = default_of(gin_edge.SETTINGS[name], entry.name)
            assert default is MISSING or checked(gin_edge.SETTINGS[name], entry, default) == default
