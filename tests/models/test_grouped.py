"""Grouped products equal one product a row, in both forms and their gradients, at the cost of the rows there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from colm_jax.models import grouped as module
from colm_jax.models.grouped import grouped, tile_rows
from colm_jax.plan.plan import matrix_flops, topology_devices

SIZES = {
    "few": [0, 1, 0, 1, 0, 0],
    "one takes all": [0, 0, 0, 40, 0, 0],
    "unlike": [129, 0, 300, 7, 1, 75],
    "even": [64] * 6,
}


def problem(sizes, dtype=jnp.float32, width=24, out=40, networks=6):
    keys, rows = jax.random.split(jax.random.key(0), 2), sum(sizes)
    x = jax.random.normal(keys[0], (rows, width)).astype(dtype)
    kernel = jax.random.normal(keys[1], (networks, width, out)).astype(dtype)
    return x, kernel, jnp.array(sizes, jnp.int32)


def slow(x, kernel, sizes, first=0):
    """Each row with the kernel of its network; zeros where there is none."""
    network = np.repeat(np.arange(len(sizes)), sizes) - first
    own = (network >= 0) & (network < len(kernel))
    out = jnp.einsum("rk,rkf->rf", x, kernel[np.clip(network, 0, len(kernel) - 1)], precision="highest")
    return jnp.where(own[:, None], out, 0)


def with_gradients(function, x, kernel):
    out, pull = jax.vjp(function, x, kernel)
    return out, *pull(jnp.cos(out))


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", SIZES)
def test_product_and_gradients_equal_one_product_a_row(name, first):
    x, kernel, sizes = problem(SIZES[name])
    kernel = kernel[first : first + 3] if first else kernel
    found = with_gradients(lambda x, kernel: grouped(x, kernel, sizes, jnp.int32(first)), x, kernel)
    expected = with_gradients(lambda x, kernel: slow(x, kernel, SIZES[name], first), x, kernel)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("shape", [(24, 40), (4100, 130)], ids=str)  # the latter: blocks that are not whole
def test_the_form_for_tpu_equals_the_other(name, first, shape):
    """In the interpreter, as it would run on TPU."""
    x, kernel, sizes = problem(SIZES[name], width=shape[0], out=shape[1])
    kernel, first = kernel[first : first + 3] if first else kernel, jnp.int32(first)
    with jax.numpy_dtype_promotion("standard"):
        for transposed in (False, True):
            rows = x if not transposed else jnp.sin(x[:, :1]) * kernel[0, :1]
            found = module._rows_by_pallas(rows, kernel, sizes, first, transposed, interpret=True)
            expected = module._rows_by_tiles(rows, kernel, sizes, first, transposed)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()) + 1e-6)
        forms = {"networks": len(kernel), "dtype": x.dtype}
        found = module._kernels_by_pallas(x, rows, sizes, first, interpret=True, **forms)
        expected = module._kernels_by_tiles(x, rows, sizes, first, **forms)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()) + 1e-6)


@pytest.mark.parametrize("turn", [1, 2**20])  # bytes: a tile at a time, or all at once
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", SIZES)
def test_the_form_for_gpu_equals_the_other(name, first, turn, monkeypatch):
    monkeypatch.setattr(module, "_TURN", turn)
    monkeypatch.setattr(module, "_ROWS_GPU", 16)
    x, kernel, sizes = problem(SIZES[name])
    kernel = kernel[first : first + 3] if first else kernel
    kernel = kernel.at[:].set(jnp.where((sizes[first : first + len(kernel)] == 0)[:, None, None], jnp.nan, kernel))
    quantised = jax.vmap(lambda one: qwix.quantize(one, jnp.int8, channelwise_axes=(1,)))(jnp.nan_to_num(kernel))
    for transposed in (False, True):
        rows = x if not transposed else jnp.sin(x[:, :1]) * jnp.ones((1, 40))
        for form in (kernel, quantised):
            found = module._rows_by_turns(rows, form, sizes, jnp.int32(first), transposed)
            expected = module._rows_by_tiles(rows, form, sizes, jnp.int32(first), transposed)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        own, every = jnp.nan_to_num(kernel), (len(kernel) == len(sizes))
        found = module._rows_on_gpu(rows, own, sizes, jnp.int32(first), transposed)
        expected = module._rows_by_tiles(rows, own, sizes, jnp.int32(first), transposed)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        traced = str(jax.make_jaxpr(module._rows_on_gpu, static_argnums=4)(rows, own, sizes, jnp.int32(0), transposed))
        assert ("ragged_dot" in traced) == (every and 4 * len(x) > len(sizes))


@pytest.mark.parametrize("kind", [jnp.int8, jnp.int4])
def test_a_quantised_kernel_is_multiplied_as_its_values(kind):
    x, kernel, sizes = problem(SIZES["unlike"], width=64)
    tiles = {0: 32} if kind == jnp.int4 else {}
    quantised = jax.vmap(lambda one: qwix.quantize(one, kind, channelwise_axes=(1,), tiled_axes=tiles))(kernel)
    plain = jax.vmap(qwix.dequantize)(quantised)

    def both(kernel):
        return with_gradients(lambda x, _: grouped(x, kernel, sizes, jnp.int32(0)), x, jnp.zeros(1))[:2]

    for one, other in zip(both(quantised), both(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)
    compiled = jax.jit(lambda x, kernel: grouped(x, kernel, sizes, jnp.int32(0))).lower(x, quantised).compile()
    assert "f32[6,64,40]" not in compiled.as_text()  # the whole stack is never dequantised


def test_kernels_of_networks_without_rows_are_not_read():
    """Poison would show, as a product with 0 too; and the program has no array of all kernels but its argument."""
    x, kernel, sizes = problem(SIZES["few"])
    expected = grouped(x, kernel, sizes, jnp.int32(0))
    poisoned = jnp.where((sizes == 0)[:, None, None], jnp.nan, kernel)
    np.testing.assert_array_equal(grouped(x, poisoned, sizes, jnp.int32(0)), expected)
    with jax.numpy_dtype_promotion("standard"):
        found = module._rows_by_pallas(x, poisoned, sizes, jnp.int32(0), False, interpret=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_float16_and_bfloat16():
    for dtype in (jnp.float16, jnp.bfloat16):
        x, kernel, sizes = problem(SIZES["unlike"], dtype)
        found = grouped(x, kernel, sizes, jnp.int32(0))
        assert found.dtype == dtype
        exact = slow(x.astype(jnp.float32), kernel.astype(jnp.float32), SIZES["unlike"])
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=0, atol=0.15)


def test_tiles_waste_little():
    """Rows that tiles hold beyond those there are, if networks have uniformly random sizes: an eighth of them."""
    rng = np.random.default_rng(0)
    for rows, networks in ((4096, 8), (16384, 128), (65536, 64)):
        sizes, height = rng.multinomial(rows, np.ones(networks) / networks), tile_rows(rows, networks)
        assert np.sum(-(-sizes // height)) * height < 1.2 * rows
    assert tile_rows(2, 8) == 2
    assert tile_rows(16, 128) == 8


def compiled_for_tpu(function, *shapes):
    where = jax.sharding.SingleDeviceSharding(topology_devices("v5e:2x2")[0])
    traced = jax.jit(function).trace(*[jax.ShapeDtypeStruct(*shape, sharding=where) for shape in shapes])
    return traced.lower(lowering_platforms=("tpu",)).compile()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("rows", "networks", "dtype"), [(4096, 8, jnp.bfloat16), (16384, 128, jnp.float32)])
def test_operations_on_tpu_are_those_of_the_rows(rows, networks, dtype):
    """Of the product, and of it with its two gradients; and those that `colm plan` counts in the traced program."""
    shapes = ((rows, 256), dtype), ((networks, 256, 384), dtype), ((networks,), jnp.int32)

    def product(x, kernel, sizes):
        return grouped(x, kernel, sizes, jnp.int32(0))

    def gradients(x, kernel, sizes):
        return jax.grad(lambda *both: jnp.sum(product(*both, sizes).astype(jnp.float32) ** 2), (0, 1))(x, kernel)

    for function, times in ((product, 1), (gradients, 3)):
        expected = times * 2 * rows * 256 * 384
        assert compiled_for_tpu(function, *shapes).cost_analysis()["flops"] == pytest.approx(expected, rel=0.02)
        abstract = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        assert matrix_flops(jax.make_jaxpr(function)(*abstract).jaxpr) == pytest.approx(expected)


@pytest.mark.usefixtures("unchecked_types")
def test_a_device_with_some_networks_is_expected_to_have_their_share_of_rows():
    for quantised, rel in ((False, 1e-6), (True, 1e-6)):
        x, kernel, sizes = problem(SIZES["even"])
        kernel = (
            jax.vmap(lambda one: qwix.quantize(one, jnp.int8, channelwise_axes=(1,)))(kernel) if quantised else kernel
        )
        some = jax.tree.map(lambda leaf: leaf[2:4], kernel)
        traced = jax.make_jaxpr(grouped)(x, some, sizes, jnp.int32(2))
        assert matrix_flops(traced.jaxpr) == pytest.approx(2 * 384 * 24 * 40 / 3, rel=rel)
