"""A run with other experts: the configuration that refreshing makes of it."""

import json

import pytest

from colm_jax.checkpoints.team import FORMAT
from colm_jax.errors import UserError
from colm_jax.pipeline.config import RunConfig
from colm_jax.pipeline.refresh import refresh_config
from colm_jax.training.config import Training


@pytest.fixture
def trained(tmp_path):
    """A run's directory with what its team says of itself."""
    (tmp_path / "run/team").mkdir(parents=True)
    (tmp_path / "run/team/config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    (tmp_path / "run/team/colm.json").write_text(json.dumps({"format": FORMAT, "expert_dtype": "int8"}))
    return tmp_path / "run"


def test_refreshing_trains_only_a_gate_on_the_base_and_in_the_dtypes_of_the_run(trained):
    asked = RunConfig("old", ("new",), "data", dev="dev", training=Training(trainable="all", epochs=3))
    config = refresh_config(asked, trained)
    assert (config.base, config.experts, config.data, config.dev) == (str(trained / "team"), ("new",), "data", "dev")
    assert (config.dtype, config.expert_dtype, config.expert_scores) == ("bfloat16", "int8", "cached")
    assert config.training == Training(trainable="gate", epochs=3)
    config = refresh_config(asked, trained, dtype="float32", expert_dtype="float32")
    assert (config.dtype, config.expert_dtype) == ("float32", "float32")


def test_a_run_without_a_trained_team_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no trained team in it"):
        refresh_config(RunConfig("old", ("new",), "data"), tmp_path)
