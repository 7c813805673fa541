"""Calibration keeps no hidden states: its memory does not grow with the width of the model."""

import json
import subprocess
import sys

import pytest


def test_peak_memory_is_a_small_part_of_the_hidden_states(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    command = [sys.executable, "-m", "docs.tables.calibrate_memory", str(tmp_path), "200"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["hidden_states"] > 400_000_000
    assert result["peak"] < 100_000_000
