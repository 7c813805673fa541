"""`colm bench speculation`: both loops write the same, and its pairs agree as often as asked."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.bench.models import alike_pair_of
from colm_jax.bench.speculation import agreeing, measure, pieces
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.settings.bench import SpeculationBench

SIZES = {"vocab_size": 64, "width": 32, "heads": 4, "ff": 48, "base_depth": 1, "expert_depth": 4}
TINY = SpeculationBench(**SIZES, agreements=(0.8,), prompt_tokens=12, new_tokens=24, requests=2, repeats=1)


@pytest.mark.parametrize("agreement", [0.9, 0.5])
def test_an_expert_agrees_as_often_as_asked(agreement):
    base_config, expert_config = alike_pair_of(TINY)
    base, deep = Decoder(base_config, nnx.Rngs(0)), Decoder(expert_config, nnx.Rngs(1))
    texts = jnp.asarray(np.random.default_rng(0).integers(0, TINY.vocab_size, (8, 36)))
    expert = agreeing(base, deep, agreement, texts)
    chosen = [jnp.argmax(model.logits(model(texts)[0]), axis=-1) for model in (base, expert)]
    assert abs(float(jnp.mean(chosen[0] == chosen[1])) - agreement) < 0.05


def test_both_loops_write_the_same_and_every_figure_is_there():
    told = []
    figures, details = measure(TINY, told.append)
    assert len(told) == pieces(TINY)
    assert {figure.name.partition(", agreement")[0] for figure in figures} == {"30 % deferred", "strategy expert"}
    assert len(figures) == 4
    for counts in details["by_agreement"]["0.8"]["counts"].values():
        assert counts["equal"] == 1
        assert counts["passes"]["plain"] >= counts["deferred"] > 0
        assert counts["passes"]["speculative"] <= counts["passes"]["plain"]


def test_an_expert_must_be_deeper():
    with pytest.raises(UserError, match="expert_depth 4 must exceed base_depth 4"):
        SpeculationBench(base_depth=4, expert_depth=4)
