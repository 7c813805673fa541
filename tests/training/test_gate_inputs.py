"""Training a gate that reads the base's uncertainty: fitted as a plain solver fits it, and trained with the base."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import minimize
from scipy.special import expit

from colm_jax.checkpoints.team import make_gate
from colm_jax.models.uncertainty import uncertainty
from colm_jax.objectives import marginal_nll
from colm_jax.parallel import make_mesh
from colm_jax.scoring import hidden_to_directory, open_hidden, score_examples
from colm_jax.settings.training import GateInit, Lora
from colm_jax.training.gate_fit import initial_gate, train_gate
from colm_jax.training.positions import Positions
from colm_jax.training.step import ScoredBatch, batch_loss
from tests.scoring.test_scorer import texts
from tests.tiny import tiny_decoder
from tests.training.test_trainer import ONE_STEP, SETTINGS, assert_same_step, leaves, metrics, run

KERNEL = 0.3 * np.random.default_rng(0).normal(size=(35, 1)).astype(np.float32)
UNCERTAIN = dataclasses.replace(SETTINGS, gate_inputs="uncertainty")


@pytest.fixture(scope="module")
def positions(tmp_path_factory):
    """What a gate is fitted to, of a base whose uncertainty says most of where the expert is better."""
    directory, examples = tmp_path_factory.mktemp("hidden"), texts(60)
    base = tiny_decoder()
    hidden_to_directory(base, examples, directory, inputs="uncertainty")
    hidden = open_hidden(directory, examples)
    rng, rows = np.random.default_rng(0), np.concatenate(hidden)
    better = 2 * (rows[:, 32] - rows[:, 32].mean()) / rows[:, 32].std()
    labels = rng.random(len(rows)) < 1 / (1 + np.exp(1 - better))
    base_log_prob = np.concatenate(score_examples(base, examples).log_prob)
    experts = np.minimum(base_log_prob + better + rng.normal(size=len(rows)), -0.01).astype(np.float32)
    return Positions(hidden, base_log_prob, experts[:, None], labels[:, None], chunk=512)


def test_both_fits_are_those_of_a_plain_solver(positions):
    rows = np.concatenate(positions.hidden).astype(np.float64)
    labels, settings = positions.labels[:, 0].astype(np.float64), GateInit(ridge=1e-3)
    base, expert = positions.base_log_prob.astype(np.float64), positions.expert_log_probs[:, 0].astype(np.float64)

    def weighted(w):
        g = rows @ w
        loss = settings.positive_weight * labels * np.logaddexp(0, -g) + (1 - labels) * np.logaddexp(0, g)
        slope = (1 - labels) * expit(g) - settings.positive_weight * labels * expit(-g)
        return loss.mean() + settings.ridge / 2 * w @ w, rows.T @ slope / len(rows) + settings.ridge * w

    def marginal(w):
        g = rows @ w
        ours, theirs = base - np.logaddexp(0, g), expert - np.logaddexp(0, -g)
        slope = expit(g) - expit(theirs - ours)
        return -np.logaddexp(ours, theirs).mean(), rows.T @ slope / len(rows)

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
    plain = minimize(weighted, np.zeros(35), jac=True, method="L-BFGS-B", options=options)
    fit = initial_gate(positions, settings, np.zeros(32))
    assert fit.kernel.shape == (35, 1)
    np.testing.assert_allclose(rows @ fit.kernel[:, 0], rows @ plain.x, atol=2e-3)
    np.testing.assert_allclose(fit.kernel[:, 0], plain.x, atol=2e-3)
    trained = train_gate(positions, fit.kernel, "marginal", 5.0)
    plain = minimize(marginal, fit.kernel[:, 0], jac=True, method="L-BFGS-B", options=options)
    value, slope = marginal(trained.kernel[:, 0].astype(np.float64))
    assert value < plain.fun + 2e-6  # not convex: the plain solver may end elsewhere
    assert np.abs(slope).max() < 3e-5
    without = Positions(tuple(h[:, :32] for h in positions.hidden), *(vars(positions)[n] for n in _COLUMNS))
    assert trained.losses[-1] < train_gate(without, fit.kernel[:32], "marginal", 5.0).losses[-1] - 0.05


_COLUMNS = ("base_log_prob", "expert_log_probs", "labels")


def test_the_reference_solver_starts_with_nothing_of_uncertainty(positions):
    mean = np.full(32, 0.5, np.float32)
    fit = initial_gate(positions, GateInit(solver="reference"), mean)
    assert np.abs(fit.kernel[:32, 0] - mean).max() < 1e-3 and np.abs(fit.kernel[32:]).max() < 1e-3


def batch(count=6):
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 30, (count, 20)).astype(np.int32), rng.random((count, 19)) < 0.8
    return ScoredBatch(tokens, mask, -rng.exponential(2.0, (count, 19, 1)).astype(np.float32), None)


def gradient(objective, loss=batch_loss):
    graph, state = nnx.split((tiny_decoder(), make_gate(KERNEL, "uncertainty")))
    settings = dataclasses.replace(UNCERTAIN, objective=objective)
    found = jax.grad(lambda state: loss(*nnx.merge(graph, state), batch(), settings)[0])(state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


def test_the_gradient_of_em_is_that_of_the_marginal():
    for one, two in zip(gradient("em"), gradient("marginal"), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_the_step_takes_the_three_values_as_given():
    def plain(decoder, gate, batch, settings):
        hidden, _ = decoder(batch.tokens[:, :-1])
        logits = decoder.logits(hidden)
        given = uncertainty(jax.lax.stop_gradient(logits))
        gate_logits = jnp.concatenate([hidden, given], -1) @ gate.kernel[...]
        log_p = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(log_p, batch.tokens[:, 1:, None], axis=-1)[..., 0]
        return marginal_nll(gate_logits, own, batch.expert_log_probs, batch.mask)

    for one, two in zip(gradient("marginal"), gradient("marginal", plain), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_base_and_gate_train_together(tmp_path, trainable):
    settings = dataclasses.replace(UNCERTAIN, trainable=trainable, lora=Lora(rank=4), epochs=4)
    _, gate = team = run(tmp_path, settings)
    assert gate.inputs == "uncertainty" and gate.kernel.shape == (35, 1)
    assert np.abs(np.asarray(gate.kernel[32:])).min() > 0
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    for one, two in zip(leaves(team), leaves(run(tmp_path, settings)), strict=True):  # from its last checkpoint
        np.testing.assert_array_equal(one, two)


def test_a_mesh_trains_as_one_device_does(tmp_path, monkeypatch):
    settings = dataclasses.replace(ONE_STEP, gate_inputs="uncertainty")
    spread = dataclasses.replace(settings, accumulate=6, packing=True)
    assert_same_step(monkeypatch, tmp_path, settings, spread, mesh=make_mesh(2, 2, 2))
