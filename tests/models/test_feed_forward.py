"""The mixture of networks equals its definition, gradients too, and reads no network that no token chose."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from colm_jax.models.config import Mixture
from colm_jax.models.feed_forward import MixtureFeedForward
from colm_jax.models.layers import Maker
from tests.tiny import tiny_config

CONFIG = tiny_config(mixture=Mixture(networks=6, active=2))


def layer():
    return MixtureFeedForward(CONFIG, Maker(nnx.Rngs(0), jnp.float32, layers=None))


def slow(mixture, x):
    """Every network on every token, then the two best of each, weighted."""
    scores = x @ mixture.router.kernel[...]
    best = jnp.sort(scores, axis=-1)[..., -2:-1]
    shares = jnp.where(scores >= best, jnp.exp(scores), 0)
    shares /= jnp.sum(shares, axis=-1, keepdims=True)
    hidden = jax.nn.silu(jnp.einsum("btd,ndf->btnf", x, mixture.gate[...]))
    hidden *= jnp.einsum("btd,ndf->btnf", x, mixture.up[...])
    return jnp.einsum("btn,btnf,nfd->btd", shares, hidden, mixture.down[...])


def test_output_and_gradient_equal_the_definition():
    graph, state = nnx.split(layer())
    x = jax.random.normal(jax.random.key(1), (2, 9, 32))

    def loss(state, x, compute):
        return jnp.sum(jnp.sin(compute(nnx.merge(graph, state), x)))

    def fast(mixture, x):
        return mixture(x)

    np.testing.assert_allclose(layer()(x), slow(layer(), x), rtol=0, atol=1e-6)
    one, two = (jax.grad(loss, argnums=(0, 1))(state, x, compute) for compute in (fast, slow))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        assert np.abs(a).max() > 1e-6


def test_a_network_that_no_token_chose_is_not_read():
    mixture, x = layer(), jax.random.normal(jax.random.key(2), (1, 1, 32))
    expected = mixture(x)
    chosen = np.argsort(np.asarray(x[0, 0] @ mixture.router.kernel[...]))[-2:]
    others = np.setdiff1d(np.arange(6), chosen)
    for kernel in (mixture.gate, mixture.up, mixture.down):
        kernel[...] = kernel[...].at[others].set(jnp.nan)
    np.testing.assert_array_equal(mixture(x), expected)
