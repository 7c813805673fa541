"""Objectives with labels: original vectors, hand computation, masks."""

import jax
import numpy as np
import pytest

from colm_jax.objectives import sft_loss, weak_loss, weighted_bce
from tests.objectives.vectors import assert_matches, at_text, vectors


def problem(experts, shape=(4, 7), seed=0):
    rng = np.random.default_rng(seed)
    gate, base = rng.normal(0, 2, (*shape, experts)), -rng.exponential(1, shape)
    return gate, base, rng.integers(0, 2, (*shape, experts)), rng.random(shape) < 0.7


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-5)])
def test_original_loss_and_gradient(shared, dtype, tolerance):
    def loss(logits, data):  # here the original's cross-entropy runs over all columns, the deferral's too
        mask = data["labels"][:, 1:] != -100
        gate, base = logits[:, :-1, -1:], at_text(logits[:, :-1], data["labels"])
        total, count = weak_loss(gate, base, data["binary"], mask)
        return total / count

    assert_matches(loss, vectors(shared), "v2", dtype, tolerance)


def test_weighted_bce_of_a_case_computed_by_hand():
    gate = np.log([[[3.0], [3.0], [9.0]]])  # σ = 3/4, 3/4, 9/10
    mask = np.array([[True, True, False]])
    total, count = weighted_bce(gate, np.array([[1, 0, 1]]), mask, positive_weight=8.0)
    np.testing.assert_allclose([total, count], [-8 * np.log(3 / 4) - np.log(1 / 4), 2], rtol=1e-6)


def test_weighted_bce_is_the_mean_over_experts():
    gate, _, labels, mask = problem(3)
    alone = [weighted_bce(gate[..., m : m + 1], labels[..., m], mask, 5.0) for m in range(3)]
    np.testing.assert_allclose(weighted_bce(gate, labels, mask, 5.0), np.mean(alone, axis=0), rtol=1e-6)


def test_weak_loss_is_two_thirds_words_and_one_third_labels():
    gate, base, labels, mask = problem(2)
    words, count = sft_loss(base, mask)
    bce, _ = weighted_bce(gate, labels, mask, 5.0)
    np.testing.assert_allclose(weak_loss(gate, base, labels, mask), [2 / 3 * words + bce / 3, count], rtol=1e-6)
    assert weak_loss(gate, base, labels, mask, positive_weight=6.0)[0] > weak_loss(gate, base, labels, mask)[0]


def test_sft_loss_is_the_texts_own_cross_entropy():
    _, base, _, mask = problem(1)
    np.testing.assert_allclose(sft_loss(base, mask), [-base[mask].sum(), mask.sum()], rtol=1e-6)


def test_sums_and_counts_add_over_parts_of_a_batch():
    whole = problem(2)
    parts = [weak_loss(*(x[rows] for x in whole)) for rows in (slice(0, 1), slice(1, 4))]
    np.testing.assert_allclose(np.sum(parts, axis=0), weak_loss(*whole), rtol=1e-6)


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_hostile_numbers_leave_loss_and_gradient_finite(extreme):
    gate, base, labels, mask = problem(2)
    gate[0, :3], base[1, 2:4] = extreme, -1e4
    base[~mask], gate[~mask], labels[~mask] = -np.inf, np.inf, -100
    value, gradient = jax.value_and_grad(lambda g, b: weak_loss(g, b, labels, mask)[0], argnums=(0, 1))(gate, base)
    assert np.isfinite(value)
    for part in gradient:
        assert np.isfinite(part).all()
        assert (np.asarray(part)[~mask] == 0).all()
