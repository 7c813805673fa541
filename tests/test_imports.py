"""What imports what: no cycles, nothing from a higher layer, and the command line's help without JAX."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "colm_jax"
# Lowest first: a package imports from its own layer's packages above it in this list, never from below.
LAYERS = (
    "errors",
    "checks",
    "seeds",
    "settings",
    "console",
    "storage",
    "parallel",
    "models",
    "text",
    "data",
    "checkpoints",
    "scoring",
    "labels",
    "objectives",
    "training",
    "experts",
    "decoding",
    "generation",
    "team",
    "serving",
    "evaluation",
    "calibration",
    "report",
    "pipeline",
    "plan",
    "bench",
    "demo",
    "sweep",
    "cli",
)
# The package's front door imports what it exports on first use; the gin edge is the command line's.
FRONT_DOOR, EDGE = "colm_jax", "colm_jax.settings.gin_edge"
# Imports inside functions, which are for what may not be installed, or what is slow and seldom needed.
LOCAL = {
    ("colm_jax.training.metrics", "colm_jax.training.board"): "tensorboardX",
}


@cache
def modules():
    """Every module of the package by name."""
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@cache
def imports(name):
    """(imported module, whether at the top of the file) of each of a module's imports from this package."""
    tree, found = ast.parse(modules()[name].read_text()), []
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative imports hide where they lead"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                targets.append(whole if whole in modules() else node.module)
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        found += [(target, node in tree.body) for target in targets if target in modules() and target != name]
    return found


def layer(name):
    """The place of a module's layer; the command line's edge of the settings belongs to the command line."""
    return LAYERS.index("cli" if name == EDGE else name.split(".")[1])


def test_no_module_imports_itself_over_others():
    done, path = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        path.append(name)
        for target, _ in imports(name):
            if name != FRONT_DOOR:
                visit(target)
        done.add(path.pop())

    for name in modules():
        visit(name)


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_module_imports_from_a_higher_layer(name):
    if name == FRONT_DOOR:
        return
    for target, _ in imports(name):
        assert target == FRONT_DOOR or layer(target) <= layer(name), f"{name} imports {target}"


def test_every_package_has_its_layer():
    assert {name.split(".")[1] for name in modules() if name != FRONT_DOOR} == set(LAYERS)


def test_imports_inside_functions_are_the_command_lines_or_listed():
    found = {(name, target) for name in modules() if name != FRONT_DOOR for target, top in imports(name) if not top}
    assert {pair for pair in found if not pair[0].startswith("colm_jax.cli")} == set(LOCAL)
    assert not any("TYPE_CHECKING" in path.read_text() for name, path in modules().items() if name != FRONT_DOOR)


@pytest.mark.parametrize("statement", ["import colm_jax.cli.main", "from colm_jax.cli.parser import main_help"])
def test_the_command_line_starts_without_jax(statement):
    program = f"{statement}; import sys; sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
