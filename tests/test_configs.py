"""Every gin file under configs/ parses and gives valid settings."""

from pathlib import Path

import gin
import pytest

from colm_jax.calibration.threshold import Calibration
from colm_jax.cli import gin_edge
from colm_jax.training.config import Training
from colm_jax.training.gate_fit import GateInit

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.gin"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_loads(path):
    gin_edge.parse([str(path)], [])
    for kind in (Training, GateInit, Calibration):
        gin_edge.make(kind)
    assert gin.config_str().strip()
    gin.clear_config()


def test_there_are_configs():
    assert CONFIGS
