"""docs/settings.md: its tables are those of the code, and its example of a gin file works as it stands."""

import json
import re
import sys
from pathlib import Path

import pytest

from colm_jax.cli.commands.config import tables
from colm_jax.cli.main import main

DOCS = Path(__file__).parents[2] / "docs/settings.md"


def test_the_tables_are_those_of_the_code():
    assert DOCS.read_text().partition("<!-- settings -->\n")[2].strip() == tables()


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example's files, in the working directory."""
    text = DOCS.read_text()
    (module,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (gin_file,) = re.findall(r"```\n(import my_module\n.*?)```", text, flags=re.DOTALL)
    (tmp_path / "my_module.py").write_text(module)
    (tmp_path / "mine.gin").write_text(gin_file)
    (tmp_path / "common.gin").write_text("Training.epochs = 2\nTraining.batch_size = 8\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_module", None)


def test_the_example_trains_and_its_operative_config_repeats_it(example, tiny_model, capsys):
    line = {"prompt": "ab", "completion": "cccccc"}
    (example / "d.jsonl").write_text("".join(json.dumps(line | {"prompt": c}) + "\n" for c in "abcdefghijklmnop"))
    models = ["--base", str(tiny_model("base")), "--expert", str(tiny_model("expert", seed=1))]
    run = [*models, "--data", "d.jsonl"]
    assert main(["config", "--gin_file", "mine.gin", *run]) == 0
    shown = capsys.readouterr().out
    for part in ("objective = @my_module.sparing ", "optimizer = @optax.adafactor ", "# mine.gin:9", "# common.gin:1"):
        assert part in shown
    assert main(["train", "--gin_file", "mine.gin", *run, "--out", "first"]) == 0
    assert main(["train", "--gin_file", "first/operative_config.gin", "--out", "second"]) == 0
    first, second = (Path(name, "train/metrics.jsonl").read_text().splitlines() for name in ("first", "second"))
    losses = [[json.loads(line)["loss"] for line in lines] for lines in (first, second)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    capsys.readouterr()
    assert main(["train", "--gin_file", "mine.gin", *run, "--out", "first"]) == 0
    assert "train: nothing to do" in capsys.readouterr().err
    changed = ["--gin.my_module.sparing.price=0.5"]
    assert main(["train", "--gin_file", "mine.gin", *changed, *run, "--out", "first"]) == 0
    said = capsys.readouterr().err
    assert "train: done" in said and "scores/expert-1: nothing to do" in said
