"""Tokenising and reading a large file takes the memory of a few texts."""

import json
import subprocess
import sys

import pytest


def test_peak_memory_is_a_small_part_of_the_data(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    command = [sys.executable, "-m", "docs.tables.tokens_memory", str(tmp_path)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["file"] >= 120_000_000
    assert result["read"] == result["tokens"] > 18_000_000
    assert result["peak"] < result["file"] / 4
