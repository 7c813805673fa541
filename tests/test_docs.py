"""Commands that the docs, the code and the configurations cite: each names a script of this repository that starts."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = (".md", ".py", ".gin", ".sh", ".yaml", ".env")


def citations() -> dict[str, set[str]]:
    """The files that cite `python -m MODULE`, for each module of docs/ and tests/."""
    found: dict[str, set[str]] = {}
    folders = ("docs", "colm_jax", "configs", "launch")
    for path in (ROOT / "README.md", *(path for folder in folders for path in (ROOT / folder).rglob("*"))):
        if path.suffix in TEXTS:
            for module in re.findall(r"python -m\s+((?:docs|tests)\.[\w.]*\w)", path.read_text(encoding="utf-8")):
                found.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    return found


CITATIONS = citations()


@pytest.mark.parametrize("module", sorted(CITATIONS))
def test_a_cited_command_exists_and_answers_help(module, monkeypatch, capsys):
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert path.is_file(), f"{module} is cited in {sorted(CITATIONS[module])}"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {path.name}")
    assert path.read_text(encoding="utf-8").rstrip().endswith('if __name__ == "__main__":\n    main()')


def test_every_script_names_its_command():
    scripts = {path.stem for path in (ROOT / "docs/tables").glob("*.py")} - {"__init__"}
    assert scripts
    for name in scripts:
        assert f"docs/tables/{name}.py" in CITATIONS[f"docs.tables.{name}"]
