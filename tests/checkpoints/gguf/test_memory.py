"""Loading a GGUF file takes little more memory than the model: no tensor is dequantised as a whole beside it."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "arguments", [["--type", "Q4_0", "--dtype", "bfloat16"], ["--type", "Q5_1", "--dtype", "float32"]]
)
def test_peak_memory_is_little_more_than_the_model(arguments, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    command = [sys.executable, "-m", "docs.tables.gguf_memory", str(tmp_path / "work"), "--depth", "3", *arguments]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["on_devices"] > 500_000_000
    assert result["peak"] <= result["on_devices"] + 1.2 * result["largest"]
