"""Loading a quantised checkpoint takes little more memory than what stays on the devices, and its size of that."""

import json
import subprocess
import sys

import pytest


def test_peak_memory_is_little_more_than_the_kernels_in_few_bits(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    command = [sys.executable, "-m", "docs.tables.load_quantized_memory", str(tmp_path / "work"), "0.3"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["checkpoint"] > 300_000_000
    assert result["quantised_kernels"] > 7
    assert result["on_devices"] < 1.05 * result["checkpoint"]
    assert result["peak"] <= result["on_devices"] + 1.2 * result["largest"]
