"""Kernels stored by output: the same products, and the same decoder, as with the kernels as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.data.records import Example, Examples
from colm_jax.evaluation.cost import bytes_per_weight
from colm_jax.models import transposed as module
from colm_jax.models.layers import product, row_product
from colm_jax.models.quantize import quantize_kernel
from colm_jax.models.transposed import TransposedKernel, transposed
from colm_jax.scoring import greedy_choices, score_examples
from tests.models.mixed import KINDS, mixed_decoder
from tests.tiny import run, tiny_decoder

EQUATIONS = {  # axes of the kernel, and how many of them are inputs
    "btd,df->btf": ((96, 192), 1),
    "btd,dnh->btnh": ((96, 12, 16), 1),
    "btnh,nhd->btd": ((6, 16, 128), 2),
    "rk,kf->rf": ((96, 64), 1),
}


@pytest.fixture
def every_kernel(monkeypatch):
    """Small kernels too are stored by output."""
    monkeypatch.setattr(module, "LEAST", 0)


def arrays(equation: str, rows: int):
    """Activations and a kernel, of variance 1."""
    shape, inputs = EQUATIONS[equation]
    leading = (rows,) if equation.startswith("rk") else (1, rows)
    keys = jax.random.split(jax.random.key(rows))
    return jax.random.normal(keys[0], (*leading, *shape[:inputs])), jax.random.normal(keys[1], shape), inputs


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17, 300])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_products_are_those_of_the_plain_kernel(equation, rows, every_kernel):
    x, kernel, inputs = arrays(equation, rows)
    stored = transposed(nnx.Param(kernel), inputs).get_value()
    assert isinstance(stored, TransposedKernel)
    assert stored.rows.nbytes == kernel.nbytes
    expected, found = product(equation, x, kernel), product(equation, x, stored)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_gradients_are_those_of_the_plain_kernel(rows, every_kernel):
    x, kernel, inputs = arrays("btd,df->btf", rows)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(product("btd,df->btf", x, kernel)))

    def stored(kernel):
        return transposed(nnx.Param(kernel), inputs).get_value()

    to_x, to_kernel = jax.grad(loss, (0, 1))(x, stored(kernel))
    expected = jax.grad(loss, (0, 1))(x, kernel)
    np.testing.assert_allclose(to_x, expected[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(to_kernel.rows, stored(expected[1]).rows, rtol=0, atol=1e-4)


def test_what_would_not_gain_stays_as_it_is(every_kernel, monkeypatch):
    even = jnp.ones((8, 128))
    mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.device_put(even, jax.sharding.NamedSharding(mesh, jax.P(None, "a")))

    def turns(value):
        kernel = nnx.Param(value)
        found = transposed(kernel, 1)
        assert (found is kernel) != isinstance(found.get_value(), TransposedKernel)
        return found is not kernel

    assert turns(even)
    for value in (even.astype(jnp.bfloat16), quantize_kernel(even, 1, "int8"), split):
        assert not turns(value)
    assert not jax.jit(turns)(even)
    monkeypatch.setattr(module, "LEAST", even.nbytes + 1)
    assert not turns(even)


@pytest.mark.parametrize("count", [1, 2, 16, 17])
def test_row_products(count):
    x, rows = jax.random.normal(jax.random.key(0), (1, count, 24)), jax.random.normal(jax.random.key(1), (40, 24))

    def loss(form):
        return jax.value_and_grad(lambda x, rows: jnp.sum(jnp.sin(form(x, rows))), (0, 1))(x, rows)

    for one, other in zip(jax.tree.leaves(loss(row_product)), jax.tree.leaves(loss(lambda x, rows: x @ rows.T))):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", *KINDS])
def test_an_unstacked_decoder_with_transposed_kernels_computes_the_same(kind, monkeypatch):
    sizes = {"width": 64, "ff": 128, "vocab_size": 64}
    decoder = tiny_decoder(kv_heads=4, head_dim=16, **sizes) if kind == "llama" else mixed_decoder(kind, **sizes)
    tokens = np.random.default_rng(0).integers(3, 32, (2, 20)).astype(np.int32)
    plain = decoder.unstacked()
    monkeypatch.setattr(module, "LEAST", 0)
    turned = decoder.unstacked()

    def kernels(decoder):
        return [v for _, v in nnx.to_flat_state(nnx.state(decoder)) if isinstance(v.get_value(), TransposedKernel)]

    assert kernels(turned) and not kernels(plain) and not kernels(decoder)
    if not decoder.config.tied:
        assert isinstance(turned.head.get_value(), TransposedKernel) and not isinstance(decoder.head, TransposedKernel)
    for one, other in zip(run(plain, tokens), run(turned, tokens)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    assert bytes_per_weight(turned) == bytes_per_weight(plain) == 4
    texts = Examples([Example(row, np.arange(len(row)) > 0) for row in tokens], 0)
    for one, other in zip(score_examples(plain, texts).log_prob, score_examples(turned, texts).log_prob):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    for one, other in zip(greedy_choices(plain, texts), greedy_choices(turned, texts)):
        np.testing.assert_array_equal(one, other)
