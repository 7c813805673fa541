"""Sampling at the ends of every setting's range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colm_jax.decoding.sampling import Sampling, take

LOGITS = jnp.array([[-40.0, 12.5, 12.0, -jnp.inf], [3e4, -3e4, 3.0002e4, -jnp.inf], [-7.0, -7.5, -jnp.inf, -9.0]])
BEST = [1, 2, 0]


def drawn(sampling: Sampling, draws: int = 1) -> np.ndarray:
    """[draws, 3] tokens."""
    keys = jax.random.split(jax.random.key(3), (draws, len(LOGITS)))
    return np.asarray(jax.jit(jax.vmap(lambda keys: take(LOGITS, keys, sampling)))(keys))


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-38, 1e-45, 5e-324])
def test_a_tiny_temperature_takes_the_most_probable_token(temperature):
    assert (drawn(Sampling(temperature), 50) == BEST).all()


@pytest.mark.parametrize("temperature", [1e12, 1e30, 1e38, 1e308])
def test_a_huge_temperature_is_uniform_over_allowed_tokens(temperature):
    found = drawn(Sampling(temperature), 400)
    for row, logits in zip(found.T, np.asarray(LOGITS)):
        counts = np.bincount(row, minlength=4)
        assert (counts[np.isfinite(logits)] > 90).all()
        assert counts[~np.isfinite(logits)].sum() == 0


@pytest.mark.parametrize("top_p", [1e-7, 1e-38, 1e-45, 5e-324])
def test_a_tiny_top_p_keeps_the_most_probable_token(top_p):
    assert (drawn(Sampling(1.0, top_p=top_p), 50) == BEST).all()


def test_top_k_above_the_vocabulary_and_a_tiny_min_p_exclude_nothing():
    plain = drawn(Sampling(2.0), 100)
    for sampling in (Sampling(2.0, top_k=2**40), Sampling(2.0, min_p=1e-45), Sampling(2.0, min_p=5e-324)):
        np.testing.assert_array_equal(drawn(sampling, 100), plain)
