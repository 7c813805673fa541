"""The notebooks run from their first cell to their last, or as far as a CPU goes."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.tiny import write_model

NOTEBOOKS = Path(__file__).parents[2] / "docs/notebooks"


def run(name, folder, monkeypatch, tag=None, **environment):
    """Execute a notebook's cells, or those with a tag; return the text of their outputs."""
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOKS.parents[1]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # they are of somebody's machine
    if tag is not None:
        notebook.cells = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]
    NotebookClient(notebook, timeout=550, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("text", "") or str(output.get("data", "")) for output in outputs]
    return "\n".join(texts)


@pytest.mark.real
@pytest.mark.timeout(1200)
def test_two_published_models_become_a_team(real, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # which are for programs that compute little
    found = run("two_models.ipynb", tmp_path, monkeypatch, COLM_REAL_MODELS=real, COLM_NOTEBOOK_OUT=tmp_path / "out")
    assert "can pair, span by span" in found and "bits per byte" in found
    assert "expert calls;" in found and found.count("image/png") == 2


def test_the_first_cells_of_the_notebook_for_accelerators_run_on_a_cpu(tmp_path, monkeypatch):
    base, expert = (write_model(tmp_path / name, seed=seed, heads=8, kv_heads=8) for seed, name in enumerate("be"))
    found = run("accelerator.ipynb", tmp_path, monkeypatch, "cpu", COLM_BASE=base, COLM_EXPERT=expert)
    assert "'tensor'" in found and "[" in found
