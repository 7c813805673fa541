"""The marginal likelihood and its EM form: original vectors, brute force, hand computation, hostile numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.models.gate import log_writers
from colm_jax.objectives import em_loss, marginal_nll, responsibilities
from tests.objectives.vectors import assert_matches, at_text, column_split, vectors


def problem(experts, shape=(2, 7), seed=0):
    rng = np.random.default_rng(seed)
    gate = rng.normal(0, 2, (*shape, experts))
    base, scores = -rng.exponential(1, shape), -rng.exponential(1, (*shape, experts))
    return gate, base, scores, rng.random(shape) < 0.7


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-5)])
def test_original_loss_and_gradient(shared, dtype, tolerance):
    def loss(logits, data):
        words, gate = column_split(logits[:, :-1])
        mask = data["labels"][:, 1:] != -100
        total, count = marginal_nll(gate, at_text(words, data["labels"]), data["ref"][..., None], mask)
        return total / count

    assert_matches(loss, vectors(shared), "v1", dtype, tolerance)


@pytest.mark.parametrize("experts", [1, 2, 3])
def test_marginal_equals_the_sum_over_all_sequences_of_writers(experts):
    gate, base, scores, _ = problem(experts, shape=(1, 4))
    mask = np.array([[True, True, False, True]])
    with jax.enable_x64(True):
        total, _ = marginal_nll(gate, base, scores, mask)
        writers = np.asarray(log_writers(gate))[0]
    likelihood = 0.0
    for z in itertools.product(range(experts + 1), repeat=3):
        own = np.concatenate([base[..., None], scores], axis=-1)[0]
        likelihood += np.exp(sum(writers[t, z_t] + own[t, z_t] for t, z_t in zip([0, 1, 3], z)))
    np.testing.assert_allclose(total, -np.log(likelihood), rtol=1e-12)


@pytest.mark.parametrize("experts", [1, 3])
def test_em_gradient_equals_marginal_gradient(experts):
    *scores, mask = problem(experts)

    with jax.enable_x64(True):
        gradients = [
            jax.grad(lambda gate, base, loss=loss: loss(gate, base, scores[2], mask)[0], argnums=(0, 1))(*scores[:2])
            for loss in (marginal_nll, em_loss)
        ]
        for one, other in zip(*gradients):
            assert np.abs(one).max() > 0.1
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_responsibilities_of_a_case_computed_by_hand():
    """P(Z) = 1/4, 1/2, 1/4 and p(x) = 0.2, 0.3, 0.4: joint 0.05, 0.15, 0.1, so p(x) = 0.3."""
    gate = np.log([[[2.0, 1.0], [2.0, 1.0]]])
    base, experts = np.log([[0.2, 0.2]]), np.log([[[0.3, 0.4], [0.3, 0.4]]])
    mask = np.array([[True, False]])
    r = responsibilities(gate, base, experts, mask)
    np.testing.assert_allclose(r, [[[1 / 6, 1 / 2, 1 / 3], [0, 0, 0]]], rtol=1e-6)
    total, count = marginal_nll(gate, base, experts, mask)
    np.testing.assert_allclose([total, count], [-np.log(0.3), 1.0], rtol=1e-6)
    expected = (np.log(1 / 4) + np.log(0.2)) / 6 + np.log(1 / 2) / 2 + np.log(1 / 4) / 3
    np.testing.assert_allclose(em_loss(gate, base, experts, mask)[0], -expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [marginal_nll, em_loss])
def test_sums_and_counts_add_over_parts_of_a_batch(loss):
    whole = problem(2, shape=(4, 7))
    parts = [loss(*(x[rows] for x in whole)) for rows in (slice(0, 1), slice(1, 4))]
    np.testing.assert_allclose(np.sum(parts, axis=0), loss(*whole), rtol=1e-6)
    assert float(loss(*whole)[1]) == whole[-1].sum()


@pytest.mark.parametrize("loss", [marginal_nll, em_loss])
@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_hostile_numbers_leave_loss_and_gradient_finite(loss, extreme):
    gate, base, scores, mask = problem(2)
    gate[0, :3], scores[1, :2], base[1, 2:4] = extreme, -1e4, -1e4
    base[~mask], scores[~mask], gate[~mask] = -np.inf, -np.inf, np.inf
    value, gradient = jax.value_and_grad(lambda *x: loss(*x, mask)[0], argnums=(0, 1, 2))(gate, base, scores)
    assert np.isfinite(value)
    for part in gradient:
        assert np.isfinite(part).all()
        assert (np.asarray(part)[~mask] == 0).all()
    assert np.isfinite(responsibilities(gate, base, scores, mask)).all()


@pytest.mark.parametrize("loss", [marginal_nll, em_loss])
def test_nothing_counts_where_all_is_masked(loss):
    gate, base, scores, mask = problem(1)
    assert [float(x) for x in loss(gate, base, scores, np.zeros_like(mask))] == [0.0, 0.0]


def test_an_expert_that_cannot_write_the_token_costs_only_its_share():
    gate, base, scores, mask = problem(1)
    total, count = marginal_nll(gate, base, np.full_like(scores, -np.inf), mask)
    expected = -(base + np.asarray(log_writers(gate))[..., 0])[mask].sum()
    np.testing.assert_allclose([total, count], [expected, mask.sum()], rtol=1e-6)


def test_results_are_float32():
    gate, base, scores, mask = (jnp.asarray(x, jnp.float32) if x.dtype != bool else x for x in problem(2))
    assert {x.dtype for x in (*marginal_nll(gate, base, scores, mask), *em_loss(gate, base, scores, mask))} == {
        jnp.dtype("float32")
    }
