"""A run with other experts: the settings that refreshing fixes."""

import json

import pytest

from colm_jax.checkpoints.team import FORMAT
from colm_jax.errors import UserError
from colm_jax.pipeline.refresh import refresh_settings


@pytest.fixture
def trained(tmp_path):
    """A run's directory with what its team says of itself."""
    (tmp_path / "run/team").mkdir(parents=True)
    (tmp_path / "run/team/config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    (tmp_path / "run/team/colm.json").write_text(json.dumps({"format": FORMAT, "expert_dtype": "int8"}))
    return tmp_path / "run"


def test_refreshing_trains_only_a_gate_on_the_base_and_in_the_dtypes_of_the_run(trained):
    fixed = {"base": str(trained / "team"), "trainable": "gate", "expert_scores": "cached", "gate_inputs": "hidden"}
    assert refresh_settings(trained) == fixed | {"dtype": "bfloat16", "expert_dtype": "int8"}
    found = refresh_settings(trained, dtype="float32", expert_dtype="float16")
    assert found == fixed | {"dtype": "float32", "expert_dtype": "float16"}


def test_the_new_gate_reads_what_the_old_one_read(trained):
    facts = {"format": FORMAT, "gate": {"inputs": "uncertainty"}}
    (trained / "team/colm.json").write_text(json.dumps(facts))
    assert refresh_settings(trained)["gate_inputs"] == "uncertainty"


def test_a_run_without_a_trained_team_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no trained team in it"):
        refresh_settings(tmp_path)
