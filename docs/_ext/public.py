"""The public names of the package, found in its files without importing them."""

import ast
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[2] / "colm_jax"


def public_names() -> dict[str, list[str]]:
    """Return the names in `__all__` of each module that has one, the command line's apart."""
    found = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if parts[1] == "cli":
            continue
        for node in tree_of(module).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                found[module] = [name for name in ast.literal_eval(node.value) if not name.startswith("__")]
    return found


def defined_names(module: str) -> list[str]:
    """Return the classes and functions that a module defines at its top and that are not private."""
    kinds = ast.ClassDef | ast.FunctionDef
    return [node.name for node in tree_of(module).body if isinstance(node, kinds) and node.name[0] != "_"]


def imported_from(module: str) -> dict[str, str]:
    """Return the module from which each name comes that a module imports."""
    nodes = (node for node in ast.walk(tree_of(module)) if isinstance(node, ast.ImportFrom) and node.module)
    return {alias.name: str(node.module) for node in nodes for alias in node.names}


@cache
def tree_of(module: str) -> ast.Module:
    """Return the syntax tree of a module of this package."""
    path = _PACKAGE.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
