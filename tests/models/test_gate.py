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


LOGITS_OF_WORDS = np.where(np.arange(9) == 4, -np.inf, np.random.default_rng(1).normal(0, 3, (3, 5, 9)))


def uncertainties(logits):
    """Entropy, top log-probability and margin of each distribution, written out in float64."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0)
    second, first = np.moveaxis(np.sort(np.log(p, where=p > 0, out=np.full(p.shape, -np.inf)), -1)[..., -2:], -1, 0)
    return np.stack([terms.sum(-1), first, first - second], -1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gate_of_uncertainty_reads_three_values_behind_the_hidden_state(dtype):
    gate = Gate(width=6, experts=2, inputs="uncertainty")
    assert gate.kernel.shape == (9, 2)
    gate.kernel[...] = jax.random.normal(jax.random.key(1), (9, 2))
    hidden = jax.random.normal(jax.random.key(0), (3, 5, 6)).astype(dtype)
    row = np.concatenate([np.asarray(hidden, np.float64), uncertainties(LOGITS_OF_WORDS)], -1)
    found = gate(hidden, LOGITS_OF_WORDS.astype(np.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, row @ np.asarray(gate.kernel[...], np.float64), rtol=1e-5, atol=1e-5)


def test_a_gate_of_uncertainty_needs_logits():
    with pytest.raises(ValueError, match="logits"):
        Gate(width=6, experts=1, inputs="uncertainty")(jnp.zeros((2, 6)))


def test_a_gate_of_hidden_states_is_the_program_that_it_was():
    gate, hidden, logits = Gate(width=6, experts=2), jnp.ones((3, 6)), jnp.ones((3, 9))
    kernel = gate.kernel[...]

    def plain(hidden, logits):
        return jnp.dot(hidden.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)

    assert str(jax.make_jaxpr(gate)(hidden, logits)) == str(jax.make_jaxpr(plain)(hidden, logits))


def test_no_gradient_passes_through_the_three_values():
    gate = Gate(width=6, experts=1, inputs="uncertainty")
    gate.kernel[...] = jnp.ones((9, 1))
    logits = jnp.asarray(LOGITS_OF_WORDS[..., :4], jnp.float32)

    def total(hidden, logits):
        return jnp.sum(gate(hidden, logits))

    to_hidden, to_logits = jax.grad(total, (0, 1))(jnp.ones((3, 5, 6)), logits)
    np.testing.assert_array_equal(to_hidden, np.ones((3, 5, 6)))
    np.testing.assert_array_equal(to_logits, np.zeros(logits.shape))
