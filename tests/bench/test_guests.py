"""`colm bench guests`: every figure is there, from counts of a real run."""

import pytest

from colm_jax.bench.guests import measure, pieces
from colm_jax.errors import UserError
from colm_jax.settings.bench import GuestsBench


def test_figures_come_from_what_was_written(shared):
    models = [str(shared / "models" / name) for name in ("babyllama-105", "stories260k")]
    settings, told = GuestsBench(*models, rate=0.5, new_tokens=24, repeats=1), []
    figures, details = measure(settings, told.append)
    assert len(told) == pieces(settings)
    counts = details["counts"]
    assert counts["spans"] > 1 and counts["base_steps"] > 0
    assert counts["tokens_computed"] >= counts["spans"]  # the last token of a unit is not always its own end
    assert counts["guest_passes"] >= counts["spans"]
    assert [figure.at_most for figure in figures] == [1.25, 2.5, None]
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in details["seconds"].values())


def test_both_models_are_required():
    with pytest.raises(UserError, match="needs --base and --expert"):
        measure(GuestsBench())
