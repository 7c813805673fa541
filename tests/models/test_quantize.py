"""Weight-only int8 and int4: near the exact model, small in memory, the same unstacked and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from colm_jax.checkpoints.huggingface import load_model
from colm_jax.models.quantize import quantize_kernel
from colm_jax.parallel import make_mesh
from tests.models.families import cached_error, tokens, write_family
from tests.tiny import run


def quantized(directory, kind, mesh, stacked=True):
    return load_model(directory, "float32", mesh, quantize=kind, stacked=stacked)[0]


def dequantized(decoder):
    """The same model with ordinary weights of the quantised values."""
    graph, state = nnx.split(decoder)

    def plain(variable):
        value = variable.get_value()
        return variable.replace(jax.vmap(qwix.dequantize)(value)) if isinstance(value, qwix.QArray) else variable

    return nnx.merge(graph, jax.tree.map(plain, state, is_leaf=lambda x: isinstance(x, nnx.Variable)))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3"])
def test_logits_are_those_of_the_rounded_weights(name, kind, tmp_path, mesh):
    decoder = quantized(write_family(tmp_path / name, name), kind, mesh)
    expected = run(dequantized(decoder), tokens()[None])[1]
    np.testing.assert_allclose(run(decoder, tokens()[None])[1], expected, rtol=0, atol=1e-4)


def test_int8_is_near_the_exact_model_and_nearer_than_int4(tmp_path, mesh):
    directory = write_family(tmp_path / "llama", "llama")
    exact = np.asarray(run(load_model(directory, "float32", mesh)[0], tokens()[None])[1])
    near = [np.asarray(run(quantized(directory, kind, mesh), tokens()[None])[1]) for kind in ("int8", "int4")]
    errors = [np.sqrt(np.mean((logits - exact) ** 2)) for logits in near]
    assert 1e-4 < errors[0] < 0.1 * exact.std()
    assert errors[0] < errors[1] / 5


def test_each_value_is_within_half_a_step():
    kernel = jax.random.normal(jax.random.key(0), (256, 3, 5))
    for kind, levels in (("int8", 127), ("int4", 7)):
        found = quantize_kernel(kernel, 1, kind)
        step = jnp.repeat(found.scale, 256 // found.scale.shape[0], axis=0)
        assert found.scale.shape == ((1, 3, 5) if kind == "int8" else (8, 3, 5))
        assert float(jnp.max(jnp.abs(qwix.dequantize(found) - kernel) / step)) <= 0.51
        assert float(jnp.max(jnp.abs(found.qvalue.astype(jnp.int32)))) <= levels + 1


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_stacked_unstacked_and_sharded_agree(name, tmp_path, mesh):
    directory = write_family(tmp_path / name, name)
    expected = np.asarray(run(quantized(directory, "int8", mesh), tokens()[None])[1])
    for other in (quantized(directory, "int8", mesh, stacked=False), quantized(directory, "int8", make_mesh(1, 2, 2))):
        np.testing.assert_allclose(run(other, tokens()[None])[1], expected, rtol=0, atol=1e-4)


def test_kernels_and_only_they_are_small(tmp_path, mesh):
    decoder = quantized(write_family(tmp_path / "llama", "llama"), "int8", mesh)
    for path, variable in nnx.to_flat_state(nnx.state(decoder)):
        is_kernel = path[-1] == "kernel"
        assert isinstance(variable.get_value(), qwix.QArray) == is_kernel, path
        if is_kernel:
            assert variable.get_value().qvalue.dtype == jnp.int8


def test_the_cache_works_with_quantised_weights(tmp_path, mesh):
    directory = write_family(tmp_path / "llama", "llama")
    assert cached_error(directory, "int8") < 1e-4
