"""The gate's fits reach their optimum, and EM reaches the marginal's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.errors import UserError
from colm_jax.objectives import marginal_nll, weighted_bce
from colm_jax.training.gate_fit import GateInit, Positions, initial_gate, train_gate


def positions(experts: int, count: int = 3000, width: int = 6) -> Positions:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(count, width))
    truth = rng.normal(size=(width, experts))
    scores = -rng.exponential(2.0, size=(count, experts + 1)) - 0.1
    better = (hidden @ truth) > 0
    scores[:, 1:] += np.where(better, 1.5, -1.5)
    labels = rng.random((count, experts)) < jax.nn.sigmoid(hidden @ truth - 2)
    values = (hidden, np.minimum(scores[:, 0], 0), np.minimum(scores[:, 1:], 0))
    return Positions(*(jnp.asarray(v, jnp.float32) for v in values), jnp.asarray(labels))


@pytest.mark.parametrize("experts", [1, 3])
def test_the_start_is_the_optimum_of_the_weighted_cross_entropy(experts):
    data, settings = positions(experts), GateInit()
    kernel, losses = initial_gate(data, settings, np.zeros(6))

    def loss(kernel):
        total, count = weighted_bce(data.hidden @ kernel, data.labels, jnp.ones(len(data.labels), bool), 8.0)
        return total / count + 0.5 * settings.ridge * jnp.sum(kernel**2)

    assert float(jnp.abs(jax.grad(loss)(kernel)).max()) < 1e-3
    assert (np.diff(losses) < 1e-6).all()  # but for rounding
    assert losses[-1] < losses[0]


def test_the_reference_start_takes_one_pass_from_the_mean_head_row():
    data = positions(2)
    mean = np.linspace(-1, 1, 6)
    kernel, losses = initial_gate(data, GateInit(solver="reference"), mean)
    assert len(losses) == 3000 // 1024
    np.testing.assert_allclose(kernel, np.tile(mean[:, None], 2), atol=2e-5 * len(losses) * 1.1)
    assert float(jnp.abs(kernel - mean[:, None]).max()) > 1e-5


@pytest.mark.parametrize("experts", [1, 2])
def test_em_reaches_the_optimum_of_the_marginal(experts):
    data = positions(experts)
    start = jnp.zeros((6, experts))

    def marginal(kernel):
        everywhere = jnp.ones(len(data.labels), bool)
        total, count = marginal_nll(data.hidden @ kernel, data.base_log_prob, data.expert_log_probs, everywhere)
        return total / count

    direct, _ = train_gate(data, start, "marginal", 5.0)
    by_em, losses = train_gate(data, start, "em", 5.0)
    assert float(jnp.abs(jax.grad(marginal)(direct)).max()) < 1e-3
    assert float(marginal(by_em)) == pytest.approx(float(marginal(direct)), abs=2e-4)
    assert float(marginal(direct)) < float(marginal(start)) - 0.05
    assert losses[-1] < losses[0]


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="solver"):
        GateInit(solver="sgd")
    with pytest.raises(UserError, match="positive_weight"):
        GateInit(positive_weight=0)
