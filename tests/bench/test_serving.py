"""`colm bench serving`: the figures, and that both sides write the same."""

import pytest

from colm_jax.bench.serving import measure, pieces
from colm_jax.errors import UserError
from colm_jax.settings.bench import ServingBench
from tests.tiny import write_model, write_team


def test_the_server_is_compared_with_the_engine(tmp_path):
    base = write_model(tmp_path / "base")
    team = write_team(tmp_path / "team", base, write_model(tmp_path / "expert", seed=1))
    settings, told = ServingBench(str(team), prompt_tokens=20, new_tokens=8, repeats=1), []
    figures, details = measure(settings, told.append)
    assert len(told) == pieces(settings) and details["strategy"] == "defer"
    by_name = {figure.name: figure for figure in figures}
    assert all(figure.value > 0 for figure in figures)
    assert by_name["streams / generate, tokens/s"].at_least == 0.9


def test_a_base_is_needed():
    with pytest.raises(UserError, match="needs --base"):
        measure(ServingBench())
