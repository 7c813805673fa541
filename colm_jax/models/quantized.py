"""Quantised kernels, and their product with activations, which dequantises (widens) a part of the kernel at a time.

There are two kinds: `qwix.QArray`, which `quantize_kernel` makes of ordinary weights, and `PackedKernel`, which holds
the codes of a checkpoint that is already quantised. In both the weight is (code - zero point) · scale, in float32,
rounded to the activations' type. Activations are not quantised.

XLA may write the whole widened kernel to memory before the product (always on CPU, in some layouts on TPU). The product
with a large kernel is therefore computed in blocks of outputs, except for a QArray on TPU, where XLA always fuses the
widening.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

TILE = 4 * 2**20  # bytes of a widened block of outputs; a kernel of up to two blocks is not split
_TILE_GPU = 32 * 2**20  # likewise on GPU, where a turn of a loop is expensive; it fits the second-level cache
_LANES = 8  # blocks are cut within so many parts of the outputs, each of which may be on a device of its own


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scale", "zero", "order"], meta_fields=["kind"])
@dataclass(frozen=True)
class PackedKernel:
    """A frozen kernel [inputs..., outputs...] in few bits, or several of them with further axes in front.

    Scales and zero points have all the kernel's axes; the size of each is 1 or divides the kernel's, and a scale is
    shared by as many codes along the axis as the quotient says. The fields may also hold shapes or shardings, as in any
    pytree.

    Four-bit codes are kept in pairs along the last input axis, the first in a byte's lower half, since XLA widens
    four-bit types to bytes in every loop on CPU.
    """

    codes: Any  # int8; float8_e4m3fn; or uint8 with two codes of 4 bits
    scale: Any  # float32, bfloat16, float16, or float8_e8m0fnu (a power of two)
    zero: Any  # None (zero points are 0), or int8 of the scale's shape
    order: Any  # None, or int32 with 1 for each output axis: row i is of the (flattened) input order[i]
    kind: str  # "int8", "float8", "int4" or "float4" (E2M1)

    @property
    def paired(self) -> bool:
        """Whether a byte holds two codes."""
        return self.kind in ("int4", "float4")


nnx.register_data_type(PackedKernel)

Quantized: TypeAlias = qwix.QArray | PackedKernel


def widened(kernel: Quantized, inputs: int, dtype: DTypeLike) -> Float[Array, "..."]:
    """Return one kernel, with `inputs` input axes, as an ordinary array, its inputs in their own order."""
    shape = kernel_shape(kernel, inputs)
    flat = _as_matrix(kernel, inputs)
    every = [values for _, values in _halves(jnp.zeros(math.prod(shape[:inputs]), dtype), flat)]
    wide = jnp.stack(every, axis=1).reshape(-1, math.prod(shape[inputs:]))
    if flat.order is not None:
        wide = jnp.zeros_like(wide).at[flat.order.reshape(-1)].set(wide)
    return wide.reshape(shape)


def quantized_product(
    equation: str, x: Float[Array, "..."], kernel: Quantized, precision: jax.lax.PrecisionLike
) -> Float[Array, "..."]:
    """Return the einsum of activations and a quantised kernel: of their last axes with its first."""
    xs, ks = equation.split("->")[0].split(",")
    inputs = sum(axis in xs for axis in ks)
    assert xs.endswith(ks[:inputs]) and equation.endswith(xs[: len(xs) - inputs] + ks[inputs:]), equation

    def split(x: Float[Array, "..."], kernel: Quantized, tile: int = TILE) -> Float[Array, "..."]:
        return _matrix_product(x, kernel, inputs, precision, tile)

    def whole(x: Float[Array, "..."], kernel: qwix.QArray) -> Float[Array, "..."]:
        return qwix.einsum(equation, x, kernel, precision=precision)

    on_tpu = split if isinstance(kernel, PackedKernel) else whole
    return jax.lax.platform_dependent(x, kernel, tpu=on_tpu, cuda=partial(split, tile=_TILE_GPU), default=split)


def _matrix_product(
    x: Float[Array, "..."], kernel: Quantized, inputs: int, precision: jax.lax.PrecisionLike, tile: int
) -> Float[Array, "..."]:
    """Return the product of activations, of which the last `inputs` axes are summed over, and a kernel.

    `tile`: bytes of a widened block of outputs.
    """
    leading, outputs = x.shape[: x.ndim - inputs], kernel_shape(kernel, inputs)[inputs:]
    x, matrix = x.reshape(*leading, -1), _as_matrix(kernel, inputs)
    if matrix.order is not None:
        x, matrix = x[..., matrix.order.reshape(-1)], replace(matrix, order=None)
    size = math.prod(outputs)
    blocks = _blocks(size, x.shape[-1] * size * x.dtype.itemsize, tile)
    found = _dot("...i,io->...o", x, matrix, precision) if blocks == 1 else _by_blocks(x, matrix, blocks, precision)
    return found.reshape(*leading, *outputs)


def kernel_shape(kernel: Quantized, inputs: int) -> tuple[int, ...]:
    """Return the shape of the kernel that codes stand for; axes in front of its own count among `inputs`."""
    if isinstance(kernel, PackedKernel):
        shape = list(kernel.codes.shape)
        shape[inputs - 1] *= 2 if kernel.paired else 1
        return tuple(shape)
    return kernel.shape


def weight_count(kernel: Quantized) -> int:
    """Return the number of weights that codes stand for."""
    if isinstance(kernel, PackedKernel):
        return kernel.codes.size * (2 if kernel.paired else 1)
    return kernel.qvalue.size


def _as_matrix(kernel: Quantized, inputs: int) -> PackedKernel:
    """Return the kernel as a matrix [I, O]; its scales are [I or a divisor of it, O or 1]."""
    shape = kernel_shape(kernel, inputs)

    def flat(part: Shaped[Array, "..."] | None) -> Shaped[Array, "I2 O2"] | None:
        if part is None:
            return None
        for axis in range(len(shape) - 1):  # repeated where groups would not be runs of the flattened axis
            if math.prod(part.shape[axis + 1 : inputs if axis < inputs else None]) > 1:
                part = jnp.repeat(part, shape[axis] // part.shape[axis], axis=axis)
        rows, columns = math.prod(part.shape[:inputs]), math.prod(part.shape[inputs:])
        part = part.reshape(rows, columns)
        wanted = math.prod(shape[inputs:])
        return part if columns in (1, wanted) else jnp.repeat(part, wanted // columns, axis=1)

    codes, outputs = (kernel.codes if isinstance(kernel, PackedKernel) else kernel.qvalue), math.prod(shape[inputs:])
    codes = codes.reshape(-1, outputs)
    if isinstance(kernel, PackedKernel):
        return PackedKernel(codes, flat(kernel.scale), flat(kernel.zero), kernel.order, kernel.kind)
    return PackedKernel(codes, flat(kernel.scale), flat(kernel.zero_point), None, "int8")


def _halves(x: Float[Array, "*N I"], matrix: PackedKernel) -> list[tuple[Float[Array, "..."], Float[Array, "..."]]]:
    """Return activations and rows, widened to their type, whose products sum to the whole one.

    The lower and upper codes of the bytes are multiplied separately: XLA on TPU would write an interleaved kernel to
    memory.
    """
    if not matrix.paired:
        return [(x, _scaled(matrix.codes.astype(jnp.float32), matrix, x.dtype))]
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return [(pairs[..., half], _scaled(_values(matrix, half), matrix, x.dtype)) for half in (0, 1)]


def _scaled(values: Float[Array, "I *O"], matrix: PackedKernel, dtype: DTypeLike) -> Float[Array, "I *O"]:
    """Return the weights of all rows, or of every second one, given the values of their codes."""

    def spread(part: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return part.astype(jnp.float32)[:, None]

    groups = matrix.scale.shape[0]
    wide = values.reshape(groups, len(values) // groups, *values.shape[1:])
    if matrix.zero is not None:
        wide -= spread(matrix.zero)
    return (wide * spread(matrix.scale)).reshape(values.shape).astype(dtype)


def _values(matrix: PackedKernel, half: int) -> Float[Array, "I *O"]:
    """Return the numbers that the lower (0) or upper (1) codes of 4 bits stand for, in float32."""
    code = (matrix.codes.astype(jnp.int32) >> (4 * half)) & 15
    if matrix.kind == "int4":
        return ((code ^ 8) - 8).astype(jnp.float32)
    exponent, mantissa = (code >> 1) & 3, code & 1
    halves = jnp.where(exponent == 0, mantissa, (2 + mantissa) << jnp.maximum(exponent - 1, 0))
    return jnp.where(code >= 8, -0.5, 0.5) * halves.astype(jnp.float32)


def _dot(
    equation: str, x: Float[Array, "..."], matrix: PackedKernel, precision: jax.lax.PrecisionLike
) -> Float[Array, "..."]:
    """Return the einsum of activations and a matrix or a part of it, summed in float32."""
    parts = [
        jnp.einsum(equation, *pair, precision=precision, preferred_element_type=jnp.float32)
        for pair in _halves(x, matrix)
    ]
    return sum(parts[1:], parts[0]).astype(x.dtype)


def _blocks(outputs: int, size: int, tile: int) -> int:
    """Return the number of blocks of outputs, of about `tile` bytes each, for a widened kernel of `size` bytes."""
    if size <= 2 * tile:
        return 1
    room = outputs // math.gcd(outputs, _LANES)
    fitting = (n for n in range(1, room + 1) if room % n == 0 and size <= tile * n)
    return next(fitting, room)


def _by_blocks(
    x: Float[Array, "*N I"], matrix: PackedKernel, blocks: int, precision: jax.lax.PrecisionLike
) -> Float[Array, "*N O"]:
    """Return the product, computed for one block of outputs after the other.

    The outputs are seen as [lanes, blocks, rest], so that no block lies on one of several devices alone.
    """
    outputs = matrix.codes.shape[1]
    lanes = math.gcd(outputs, _LANES)

    def split(part: Shaped[Array, "I2 O2"]) -> Shaped[Array, "..."]:
        return part.reshape(len(part), *((1, 1, 1) if part.shape[1] == 1 else (lanes, blocks, -1)))

    parts = jax.tree.map(split, matrix)

    def block(n: Int[Array, ""]) -> Float[Array, "*N lanes rest"]:
        def one(part: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
            return part[:, :, 0] if part.shape[2] == 1 else jax.lax.dynamic_index_in_dim(part, n, 2, keepdims=False)

        return _dot("...i,ilr->...lr", x, jax.tree.map(one, parts), precision)

    found = jax.lax.map(block, jnp.arange(blocks))  # [blocks, *N, lanes, rest]
    return jnp.moveaxis(found, 0, -2).reshape(*x.shape[:-1], outputs)
