"""Loading a large checkpoint takes little more memory than the model."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize("mesh", ["1 1 1", "1 2 4"])
def test_peak_memory_is_little_more_than_the_model(mesh, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    command = [sys.executable, "-m", "docs.tables.load_memory", str(tmp_path / "work"), *mesh.split()]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["checkpoint"] > 2_000_000_000
    assert result["on_devices"] < 1.01 * result["checkpoint"]
    assert result["peak"] <= result["on_devices"] + 1.2 * result["largest"]
