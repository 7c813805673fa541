"""The gate's fits: streamed sums equal the whole's, every path reaches the optimum, EM the marginal's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import colm_jax.training.gate_fit as gate_fit
from colm_jax.errors import UserError
from colm_jax.objectives import marginal_nll, weighted_bce
from colm_jax.settings.training import GateInit, Training
from colm_jax.training.gate_fit import MeanLoss, initial_gate, minimise, train_gate
from colm_jax.training.positions import Positions

WIDTH = 6


def positions(experts: int, count: int = 3000, chunk: int = 8192) -> Positions:
    """Positions whose best gate is known to be finite; hidden states in shards of unequal length, one of them empty."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(count, WIDTH)).astype(np.float32)
    truth = rng.normal(size=(WIDTH, experts))
    scores = -rng.exponential(2.0, size=(count, experts + 1)) - 0.1
    scores[:, 1:] += np.where((hidden @ truth) > 0, 1.5, -1.5)
    scores = np.minimum(scores, 0).astype(np.float32)
    labels = rng.random((count, experts)) < 1 / (1 + np.exp(2 - hidden @ truth))
    shards = tuple(np.split(hidden, [count // 7, count // 7, count // 2]))
    return Positions(shards, scores[:, 0], scores[:, 1:], labels, chunk=chunk)


def whole(data: Positions):
    """Hidden states, scores and labels in float64."""
    columns = (np.concatenate(data.hidden), data.base_log_prob, data.expert_log_probs)
    return (*(np.asarray(column, np.float64) for column in columns), data.labels.astype(np.float64))


def label_gradient(data: Positions, kernel: np.ndarray, settings: GateInit) -> np.ndarray:
    """Of the weighted cross-entropy with its penalty, written out in float64."""
    hidden, _, _, labels = whole(data)
    p = 1 / (1 + np.exp(-hidden @ kernel.astype(np.float64)))
    slopes = (-settings.positive_weight * labels * (1 - p) + (1 - labels) * p) / labels.shape[1]
    return hidden.T @ slopes / len(hidden) + settings.ridge * kernel


def marginal(data: Positions, kernel: np.ndarray) -> tuple[float, np.ndarray]:
    """The marginal's nats per token and their gradient, written out in float64."""
    hidden, base, experts, _ = whole(data)
    logits = np.concatenate([np.zeros((len(hidden), 1)), hidden @ kernel.astype(np.float64)], 1)
    prior = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    joint = prior * np.exp(np.concatenate([base[:, None], experts], 1))
    r = joint / joint.sum(1, keepdims=True)
    return -np.log(joint.sum(1)).mean(), hidden.T @ (prior - r)[:, 1:] / len(hidden)


@pytest.mark.parametrize("experts", [1, 3])
def test_the_start_is_the_optimum_of_the_weighted_cross_entropy(experts):
    data, settings = positions(experts, chunk=1024), GateInit()
    fit = initial_gate(data, settings, np.zeros(WIDTH))
    assert fit.kernel.dtype == np.float32
    assert np.abs(label_gradient(data, fit.kernel, settings)).max() < 1e-6
    assert (np.diff(fit.losses) <= 0).all()
    assert fit.losses[-1] < fit.losses[0]
    assert len(fit.losses) <= fit.passes < 15


@pytest.mark.parametrize("chunk", [700, 1000, 3000])  # the last chunk partial, whole, and the only one
def test_chunks_change_no_fit(chunk):
    one, several = (initial_gate(positions(2, chunk=size), GateInit(), np.zeros(WIDTH)) for size in (8192, chunk))
    np.testing.assert_allclose(one.kernel, several.kernel, atol=1e-5)
    one, several = (train_gate(positions(2, chunk=size), one.kernel, "marginal", 5.0) for size in (8192, chunk))
    np.testing.assert_allclose(one.kernel, several.kernel, atol=1e-4)


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("objective", ["weak", "marginal"])
def test_value_gradient_and_hessian_are_those_of_the_whole_loss(experts, objective):
    data, ridge = positions(experts, chunk=700), 0.01
    loss = partial(gate_fit._label_loss, positive_weight=5.0) if objective == "weak" else gate_fit._latent_loss
    point = np.random.default_rng(1).normal(size=WIDTH * experts)

    with jax.enable_x64(True):
        hidden, base, scores, labels = (jnp.asarray(column)[None] for column in whole(data))

        def plain(x):
            logits, mask = hidden @ x.reshape(WIDTH, experts), jnp.ones(base.shape, bool)
            if objective == "weak":
                total, count = weighted_bce(logits, labels, mask, 5.0)
            else:
                total, count = marginal_nll(logits, base, scores, mask)
            return total / count + 0.5 * ridge * x @ x

        value, gradient, hessian = (np.asarray(f(point)) for f in (plain, jax.grad(plain), jax.hessian(plain)))
    mean = MeanLoss(data, loss, ridge, second_order=True)
    np.testing.assert_allclose(mean.value(point), value, rtol=1e-6)
    np.testing.assert_allclose(mean.gradient(point), gradient, atol=1e-6)
    np.testing.assert_allclose(mean.hessian(point), hessian, atol=2e-6)
    assert mean.passes == 1


def test_no_call_sees_more_than_a_chunk(monkeypatch):
    seen, real = set(), Positions.take
    monkeypatch.setattr(
        Positions, "take", lambda self, rows, size: seen.add((len(rows), size)) or real(self, rows, size)
    )
    data = positions(1, chunk=512)
    for objective in ("marginal", "em"):
        train_gate(data, initial_gate(data, GateInit(), np.zeros(WIDTH)).kernel, objective, 5.0)
    assert seen == {(512, 512), (3000 % 512, 512)}


@pytest.mark.parametrize("objective", ["weak", "marginal"])
def test_above_the_limit_of_dense_hessians_the_optimum_is_the_same(monkeypatch, objective):
    data, start = positions(2), np.zeros((WIDTH, 2), np.float32)
    dense = train_gate(data, start, objective, 5.0)
    monkeypatch.setattr(gate_fit, "DENSE", 11)
    monkeypatch.setattr(MeanLoss, "hessian", None)
    steps = []
    sparse = train_gate(data, start, objective, 5.0, lambda step, loss: steps.append((step, loss)))
    np.testing.assert_allclose(dense.kernel, sparse.kernel, atol=1e-3)
    assert sparse.losses[-1] == pytest.approx(dense.losses[-1], abs=1e-7)
    assert steps == list(enumerate(sparse.losses))[1:]


def test_steps_are_bounded():
    fit = minimise(positions(1), gate_fit._latent_loss, np.zeros((WIDTH, 1), np.float32), 0.0, max_steps=2)
    assert len(fit.losses) == 3


def test_the_reference_start_takes_one_pass_from_the_mean_head_row():
    data = positions(2)
    mean = np.linspace(-1, 1, WIDTH)
    fit = initial_gate(data, GateInit(solver="reference"), mean)
    assert len(fit.losses) == 3000 // 1024
    assert fit.passes == 1
    np.testing.assert_allclose(fit.kernel, np.tile(mean[:, None], 2), atol=2e-5 * len(fit.losses) * 1.1)
    assert np.abs(fit.kernel - mean[:, None]).max() > 1e-5


@pytest.mark.parametrize("experts", [1, 2])
def test_em_reaches_the_optimum_of_the_marginal(experts):
    data = positions(experts, chunk=1024)
    start = np.zeros((WIDTH, experts), np.float32)
    direct, by_em = (train_gate(data, start, objective, 5.0) for objective in ("marginal", "em"))
    assert np.abs(marginal(data, direct.kernel)[1]).max() < 1e-6
    assert marginal(data, by_em.kernel)[0] == pytest.approx(marginal(data, direct.kernel)[0], abs=2e-5)
    assert marginal(data, by_em.kernel)[0] == pytest.approx(by_em.losses[-1], abs=1e-6)
    assert direct.losses[-1] < direct.losses[0] - 0.05
    assert (np.diff(by_em.losses) < 1e-7).all()


@pytest.mark.parametrize("objective", ["marginal", "em"])
def test_a_penalty_moves_the_optimum_to_that_of_the_penalised_marginal(objective):
    data, ridge, start = positions(1, chunk=1024), 0.05, np.zeros((WIDTH, 1), np.float32)
    fit = train_gate(data, start, objective, 5.0, ridge=ridge)
    value, gradient = marginal(data, fit.kernel)
    assert np.abs(gradient + ridge * fit.kernel).max() < (1e-6 if objective == "marginal" else 1e-3)
    assert fit.losses[-1] == pytest.approx(value + 0.5 * ridge * (fit.kernel**2).sum(), abs=1e-5)
    assert np.linalg.norm(fit.kernel) < 0.8 * np.linalg.norm(train_gate(data, start, objective, 5.0).kernel)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="solver"):
        GateInit(solver="sgd")
    with pytest.raises(UserError, match=r"gate_ridge 0\.1 is the penalty of a gate that is trained alone"):
        Training(gate_ridge=0.1)
    with pytest.raises(UserError, match="positive_weight"):
        GateInit(positive_weight=0)
