"""The public interface: what `colm_jax` exports, without JAX until it is used, each with an example that runs."""

import ast
import doctest
import importlib
import importlib.metadata
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import colm_jax
import colm_jax.objectives
from colm_jax.checkpoints.families import FAMILIES
from colm_jax.decoding.strategies import CHOOSE
from colm_jax.settings.strategies import STRATEGIES
from tests.tiny import write_model, write_team

FRONT = Path(colm_jax.__file__)
EXAMPLES = {
    **{f"colm_jax.{name}": getattr(colm_jax, name) for name in colm_jax.__all__ if name != "__version__"},
    **{f"colm_jax.objectives.{name}": getattr(colm_jax.objectives, name) for name in colm_jax.objectives.__all__},
}
# The modules whose `__all__` is public (CONTRIBUTING.md).
PUBLIC = """
    colm_jax colm_jax.objectives colm_jax.scoring colm_jax.labels colm_jax.settings colm_jax.parallel
    colm_jax.checkpoints.families colm_jax.decoding.strategies colm_jax.experts.protocol
""".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the examples name: two tiny random models, a team of them, and texts."""
    where = tmp_path_factory.mktemp("examples")
    base, expert = write_model(where / "SMALL"), write_model(where / "LARGE", seed=1)
    write_team(where / "RUN/team", base, expert)
    rng, letters = np.random.default_rng(0), list("abcdefgh ")
    for name in ("train", "dev"):
        texts = ["".join(rng.choice(letters, 20)) for _ in range(4)]
        lines = (json.dumps({"prompt": text[:5], "completion": text[5:]}) for text in texts)
        (where / f"{name}.jsonl").write_text("\n".join(lines))
    return where


@pytest.fixture
def tables():
    """Forgets what examples register."""
    before = [(table, dict(table)) for table in (FAMILIES, STRATEGIES, CHOOSE)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_public_name_has_an_example_that_runs(name, folder, tables, monkeypatch):
    monkeypatch.chdir(folder)
    documented = inspect.getdoc(EXAMPLES[name]) or ""
    example = doctest.DocTestParser().get_doctest(documented, {}, name, None, 0)
    assert example.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_name_in_all_exists_once(module):
    found = importlib.import_module(module)
    assert len(set(found.__all__)) == len(found.__all__)
    for name in found.__all__:
        assert getattr(found, name) is not None


def test_what_type_checkers_see_is_what_is_imported():
    tree = ast.parse(FRONT.read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*seen, "__version__"} == {*colm_jax.__all__}
    for name, path in seen.items():
        assert f"{colm_jax._HOME[name]}.{name}" == path
    assert {*colm_jax.__all__} <= {*dir(colm_jax)}


@pytest.mark.parametrize(
    "use", ["", "colm_jax.UserError, colm_jax.GenerationSettings(), colm_jax.RunConfig", "dir(colm_jax)"]
)
def test_import_needs_no_jax(use):
    heavy = "('jax', 'flax', 'transformers')"
    program = f"import colm_jax, sys; {use or 'pass'}; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'colm_jax' has no attribute 'Colm'"):
        colm_jax.Colm  # noqa: B018


def test_the_version_is_that_of_the_installed_package(monkeypatch):
    assert colm_jax.__version__ == importlib.metadata.version("colm-jax")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert colm_jax.__version__ == "0+unknown"
