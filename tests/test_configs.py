"""Every gin file under configs/ gives valid settings, and says what its reader wants to know."""

import re
from pathlib import Path

import pytest

from colm_jax.cli.commands import sweep
from colm_jax.cli.main import main
from colm_jax.settings import gin_edge
from colm_jax.settings.sweep import Sweep
from colm_jax.sweep.runner import InputHashes
from colm_jax.sweep.trials import make_trials

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = {folder: sorted((CONFIGS / folder).glob("*.gin")) for folder in ("runs", "methods", "data", "sweeps")}
GIVEN = ["--base", "base", "--expert", "expert", "--data", "train.jsonl"]  # what a run file may leave to flags


def named(folder):
    return pytest.mark.parametrize("path", FILES[folder], ids=lambda path: path.stem)


@named("runs")
def test_a_run_file_is_a_valid_run(path, capsys):
    held = gin_edge.read([str(path)], [])
    missing = [flag for flag in GIVEN[::2] if not held.is_bound("Run", {"expert": "experts"}.get(flag[2:], flag[2:]))]
    flags = [part for flag, value in zip(GIVEN[::2], GIVEN[1::2]) if flag in missing for part in (flag, value)]
    assert main(["config", "--gin_file", str(path), *flags]) == 0
    assert "Run.base = " in capsys.readouterr().out


@pytest.mark.parametrize("word", ["colm run", "CPU|chip|GPU", "minute|hour|[Nn]ot run", "[Oo]ften overridden"])
@named("runs")
def test_a_run_file_opens_with_what_its_reader_wants_to_know(path, word):
    comment = re.match(r"(#.*\n)+", path.read_text())
    assert comment and re.search(word, comment[0]), f"{path.name} does not say {word!r} in its first lines"


# Those that set EXPERT, and are no run of a model alone.
ALONE = {path for path in FILES["runs"] if "Run.experts = ()" in path.read_text()}
PAIRS = [path for path in FILES["runs"] if path.stem != "stories_gate" and path not in ALONE]


@named("methods")
def test_a_method_goes_with_every_pair(path, capsys):
    for run in PAIRS:
        assert main(["config", f"--gin_file={run}", f"--gin_file={path}"]) == 0, run


@named("sweeps")
def test_a_sweep_file_gives_valid_trials(path):
    trials = make_trials(gin_edge.read([str(path)], []).make(Sweep), [path.parent])
    assert len(trials) > 1
    for trial in trials:
        run = [] if "demo" in path.stem else [str(PAIRS[1])]
        state = sweep._state_of(trial, [*run, str(path)], [], Path("out"), InputHashes())
        assert state.command[3] == "run"


def test_there_are_configs():
    assert all(FILES.values())


def test_files_that_help_and_docs_name_are_there():
    root = CONFIGS.parent
    texts = [
        root / "README.md",
        *(root / "colm_jax/cli").rglob("*.py"),
        *root.rglob("docs/**/*.md"),
        *CONFIGS.rglob("*.gin"),
    ]
    texts += [path for path in (root / "launch").iterdir() if path.is_file()]
    for path in texts:
        named = r"(?<![\w/(-])(?:configs|docs|launch)/[\w./-]+\.(?:gin|md|png|sh|sbatch|yaml)"
        for name in re.findall(named, path.read_text()):
            assert (root / name).exists(), f"{path.name} names {name}"
