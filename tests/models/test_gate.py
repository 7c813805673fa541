"""The gate's probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.models.gate import Gate, log_writers, p_defer

LOGITS = np.random.default_rng(0).normal(0, 4, (3, 5, 4)).astype(np.float32)


@pytest.mark.parametrize("experts", [1, 2, 4])
def test_writers_are_a_distribution_over_base_and_experts(experts):
    writers = jnp.exp(log_writers(LOGITS[..., :experts]))
    assert writers.shape == (3, 5, experts + 1)
    np.testing.assert_allclose(writers.sum(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("experts", [1, 2, 4])
def test_deferring_is_not_writing_oneself(experts):
    logits = LOGITS[..., :experts]
    np.testing.assert_allclose(p_defer(logits), 1 - jnp.exp(log_writers(logits)[..., 0]), rtol=0, atol=1e-6)


def test_one_expert_is_a_sigmoid():
    np.testing.assert_allclose(p_defer(LOGITS[..., :1]), jax.nn.sigmoid(LOGITS[..., 0]), rtol=1e-6)
    np.testing.assert_allclose(log_writers(LOGITS[..., :1])[..., 1], jax.nn.log_sigmoid(LOGITS[..., 0]), rtol=1e-5)


def test_the_base_stands_first_and_the_experts_keep_their_order():
    np.testing.assert_allclose(jnp.exp(log_writers(jnp.log(jnp.array([2.0, 5.0])))), [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_logits_stay_finite(value):
    logits = jnp.full((2,), value)
    assert jnp.isfinite(log_writers(logits)).all()
    assert p_defer(logits) == float(value > 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gate_computes_in_float32(dtype):
    gate = Gate(width=6, experts=2)
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 6)).astype(dtype)
    np.testing.assert_array_equal(gate(hidden), np.zeros((3, 5, 2)))
    gate.kernel[...] = jax.random.normal(jax.random.key(1), (6, 2))
    expected = np.asarray(hidden, np.float64) @ np.asarray(gate.kernel[...], np.float64)
    assert gate(hidden).dtype == jnp.float32
    np.testing.assert_allclose(gate(hidden), expected, rtol=1e-5, atol=1e-6)
