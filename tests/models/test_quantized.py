"""Products with kernels in few bits: those of the widened kernel, without ever writing all of it to memory."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix

from colm_jax.models import quantized
from colm_jax.models.layers import product
from colm_jax.models.quantized import PackedKernel, widened
from colm_jax.parallel import make_mesh, spec_of
from colm_jax.plan.plan import topology_devices

E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
# equation: shape of the activations, of the kernel, numbers of scales along its inputs
CASES = {
    "btd,df->btf": ((2, 3, 24), (24, 40), ((1,), (4,), (3,))),
    "btd,dnh->btnh": ((2, 3, 24), (24, 6, 8), ((1,), (4,))),
    "btnh,nhd->btd": ((2, 3, 6, 8), (6, 8, 40), ((1, 1), (6, 1), (3, 1), (6, 2))),
}


def kernel_of(kind, shape, inputs, counts, *, zeros=False, order=False, per_output=True, seed=0):
    """A random kernel, and its values."""
    rng, total = np.random.default_rng(seed), int(np.prod(shape[:inputs]))
    outputs = shape[inputs:]
    scale_shape = (*counts, *(outputs if per_output else (1,) * len(outputs)))
    scale = rng.uniform(0.5, 2.0, scale_shape).astype(np.float16)
    if kind == "float4":
        scale = np.exp2(rng.integers(-3, 3, scale_shape)).astype(ml_dtypes.float8_e8m0fnu)
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    values = {"int4": (codes.astype(int) ^ 8) - 8, "float4": E2M1[codes]}.get(kind)
    if kind in ("int4", "float4"):
        flat = codes.reshape(total, -1)
        kept = (flat[0::2] | flat[1::2] << 4).reshape(*shape[: inputs - 1], shape[inputs - 1] // 2, *outputs)
    else:
        kept = rng.integers(-100, 100, shape).astype(np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn)
        values = kept
    zero = rng.integers(-8, 9, scale_shape).astype(np.int8) if zeros else None

    def spread(part):
        for axis, size in enumerate(shape):
            part = np.repeat(part, size // part.shape[axis], axis=axis)
        return part.astype(np.float32)

    wide = (values.astype(np.float32) - (spread(zero) if zeros else 0)) * spread(scale)
    places = None
    if order:
        permuted = rng.permutation(total)
        flat = np.empty((total, *outputs), np.float32)
        flat[permuted] = wide.reshape(total, *outputs)
        wide, places = flat.reshape(shape), permuted.astype(np.int32).reshape(*shape[:inputs], *(1,) * len(outputs))
    return jax.tree.map(jnp.asarray, PackedKernel(kept, scale, zero, places, kind)), wide


@pytest.fixture(params=["whole", "blocks"])
def blocks(request, monkeypatch):
    """Both with kernels that are taken whole and with kernels in blocks."""
    if request.param == "blocks":
        monkeypatch.setattr(quantized, "TILE", 300)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("kind", ["int4", "float4", "int8", "float8"])
@pytest.mark.parametrize("equation", CASES)
def test_product_is_that_of_the_values(equation, kind, order, blocks):
    x_shape, shape, every = CASES[equation]
    inputs = 2 if equation.startswith("btnh") else 1
    x = jax.random.normal(jax.random.key(0), x_shape)
    for counts in every:
        for zeros, per_output in ((False, True), (True, True), (False, False)):
            settings = {"zeros": zeros, "order": order, "per_output": per_output}
            kernel, wide = kernel_of(kind, shape, inputs, counts, **settings)
            np.testing.assert_allclose(widened(kernel, inputs, jnp.float32), wide, rtol=1e-6)
            expected = np.einsum(equation, x, wide)
            np.testing.assert_allclose(
                product(equation, x, kernel), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
            )


@pytest.mark.parametrize("kind", [jnp.int8, jnp.int4])
@pytest.mark.parametrize("equation", CASES)
def test_product_of_a_qarray_is_that_of_its_values(equation, kind, blocks):
    x_shape, shape, _ = CASES[equation]
    inputs = 2 if equation.startswith("btnh") else 1
    keys = jax.random.split(jax.random.key(0))
    x, plain = jax.random.normal(keys[0], x_shape), jax.random.normal(keys[1], shape)
    tiles = {inputs - 1: 4} if kind == jnp.int4 else {}
    kernel = qwix.quantize(plain, kind, channelwise_axes=tuple(range(inputs, len(shape))), tiled_axes=tiles)
    expected = jnp.einsum(equation, x, qwix.dequantize(kernel))
    np.testing.assert_allclose(product(equation, x, kernel), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("equation", CASES)
def test_eight_devices_give_the_same(equation, order, blocks):
    x_shape, shape, every = CASES[equation]
    inputs = 2 if equation.startswith("btnh") else 1
    x, mesh = jax.random.normal(jax.random.key(0), x_shape), make_mesh(2, 2, 2)
    axes = {"btd,df->btf": ("embed", "ff"), "btd,dnh->btnh": ("embed", "heads", "head_dim")}.get(
        equation, ("heads", "head_dim", "embed")
    )
    run = jax.jit(lambda x, kernel: product(equation, x, kernel))
    for counts in every:
        kernel, _ = kernel_of("int4", shape, inputs, counts, zeros=True, order=order)
        placed = jax.tree.map(
            lambda part: jax.device_put(part, jax.sharding.NamedSharding(mesh, spec_of(mesh, axes, part.shape))), kernel
        )
        np.testing.assert_allclose(run(x, placed), run(x, kernel), rtol=0, atol=1e-3)


def abstract(kind, shape, inputs, group, sharding=None):
    """The shapes of a large kernel with a scale for every `group` inputs of each output."""
    pair = 2 if kind in ("int4", "float4") else 1

    def make(sizes, dtype):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    total = int(np.prod(shape[:inputs]))
    counts = (total // group,) if inputs == 1 else (total // group, 1)
    outputs = shape[inputs:]
    codes = make((*shape[: inputs - 1], shape[inputs - 1] // pair, *outputs), jnp.uint8 if pair == 2 else jnp.int8)
    zero = make((*counts, *outputs), jnp.int8) if kind == "int4" else None
    scale = make((*counts, *outputs), jnp.float8_e8m0fnu if kind == "float4" else jnp.float16)
    return PackedKernel(codes, scale, zero, None, kind)


LARGE = {
    "btd,df->btf": ((1, 8, 4096), (4096, 16384), 1),
    "btd,dnh->btnh": ((1, 8, 4096), (4096, 128, 128), 1),
    "btnh,nhd->btd": ((1, 8, 64, 128), (64, 128, 4096), 2),
}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("kind", ["int4", "float4", "int8"])
@pytest.mark.parametrize("equation", LARGE)
def test_a_large_kernel_is_never_widened_whole(equation, kind, platform):
    x_shape, shape, inputs = LARGE[equation]
    where = None
    if platform == "tpu":
        where = jax.sharding.SingleDeviceSharding(topology_devices("v5e:2x2")[0])
    x = jax.ShapeDtypeStruct(x_shape, jnp.bfloat16, sharding=where)
    traced = jax.jit(lambda x, kernel: product(equation, x, kernel)).trace(x, abstract(kind, shape, inputs, 128, where))
    compiled = traced.lower(lowering_platforms=(platform,)).compile()
    whole = 2 * int(np.prod(shape))  # in bfloat16
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 8
