"""What blocks are built of: parameters with logical axes, linear maps (plain, quantised, with LoRA), norms."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from colm_jax.models.quantized import Quantized, quantized_product
from colm_jax.models.transposed import TransposedKernel, rows_left, transposed_product

FEW = 16  # vectors of a decode step or a short pass


def precision_of(dtype: DTypeLike) -> jax.lax.PrecisionLike:
    """Float32 means float32 on every back end; TPUs and GPUs would otherwise multiply in fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


class Fixed(nnx.Variable):
    """A value of a model that is no parameter: no training changes it."""


class Maker:
    """Makes the parameters of a module: stacked over `layers` where that is given, and randomly initialised.

    Without `rngs` they are shapes and dtypes alone (`jax.ShapeDtypeStruct`), as `nnx.eval_shape` returns them, which
    traces the whole initialisation for them.
    """

    def __init__(self, rngs: nnx.Rngs | None, dtype: DTypeLike, layers: int | None):
        self.rngs, self.dtype, self.layers = rngs, dtype, layers

    def __call__(self, shape: tuple[int, ...], axes: tuple[str, ...], scale: float) -> nnx.Param:
        """Return a parameter, normal with deviation `scale`."""
        shape, axes = self._stacked(shape, axes)
        if self.rngs is None:
            return nnx.Param(jax.ShapeDtypeStruct(shape, self.dtype), axes=axes)
        return nnx.Param((scale * jax.random.normal(self.rngs.params(), shape)).astype(self.dtype), axes=axes)

    def constant(self, value: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
        """Return a parameter that is `value` everywhere."""
        shape, axes = self._stacked(shape, axes)
        return nnx.Param(self._full(value, shape, self.dtype), axes=axes)

    def fixed(self, value: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> Fixed:
        """Return float32 numbers that training leaves as they are."""
        shape, axes = self._stacked(shape, axes)
        return Fixed(self._full(value, shape, jnp.float32), axes=axes)

    def _full(self, value: float, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array | jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype) if self.rngs is None else jnp.full(shape, value, dtype)

    def _stacked(self, shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        return (shape, axes) if self.layers is None else ((self.layers, *shape), ("layers", *axes))


def product(
    equation: str,
    x: Float[Array, "..."],
    kernel: Float[Array, "..."] | Quantized | TransposedKernel,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """Return the einsum of activations and a kernel that may be quantised or transposed; of `dtype`, if it is plain."""
    precision = precision_of(x.dtype)
    if isinstance(kernel, TransposedKernel):
        return transposed_product(x, kernel)
    if isinstance(kernel, Quantized):
        return quantized_product(equation, x, kernel, precision)
    return jnp.einsum(equation, x, kernel, precision=precision, preferred_element_type=dtype)


def row_product(x: Float[Array, "*N D"], rows: Float[Array, "V D"]) -> Float[Array, "*N V"]:
    """Return the products of each vector with each row of a matrix, float32.

    For 2 to FEW vectors XLA on CPU transposes the matrix first, unless the matrix is the left operand.
    """
    precision = precision_of(x.dtype)

    def plain(x: Float[Array, "*N D"], rows: Float[Array, "V D"]) -> Float[Array, "*N V"]:
        # Not x @ rows.T: for one vector XLA on CPU would write the transposed matrix to memory.
        return jnp.einsum("...d,vd->...v", x, rows, precision=precision, preferred_element_type=jnp.float32)

    def swapped(x: Float[Array, "*N D"], rows: Float[Array, "V D"]) -> Float[Array, "*N V"]:
        return rows_left(x.reshape(-1, x.shape[-1]), rows).reshape(*x.shape[:-1], -1)

    if not 2 <= math.prod(x.shape[:-1]) <= FEW:
        return plain(x, rows)
    return jax.lax.platform_dependent(x, rows, cpu=swapped, default=plain)


class Linear(nnx.Module):
    """A linear map over the axes that an einsum equation names, as in "btd,dnh->btnh"."""

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        make: Maker,
        *,
        scale: float,
        bias: bool = False,
    ):
        self.equation = equation
        self.kernel = make(shape, axes, scale)
        inputs = self.inputs
        if bias:
            self.bias = make.constant(0.0, shape[inputs:], axes[inputs:])

    @property
    def inputs(self) -> int:
        """How many of the kernel's leading axes are summed over."""
        x, kernel = self.equation.split("->")[0].split(",")
        return sum(axis in x for axis in kernel)

    def __call__(self, x: Float[Array, "B T ..."], joined: bool = False) -> Float[Array, "B T ..."]:
        """Map each token.

        `joined`: where two axes are summed over, they are joined first; XLA on CPU else transposes the kernel at every
        call. Not for training: LoRA knows a kernel by its einsum.
        """
        kernel = self.kernel.get_value()
        if joined and self.inputs == 2 and isinstance(kernel, jax.Array):
            both = x.reshape(*x.shape[:-2], -1), kernel.reshape(-1, kernel.shape[-1])
            out = jnp.dot(*both, precision=precision_of(x.dtype))
        else:
            out = product(self.equation, x, kernel)
        if hasattr(self, "bias"):
            out += self.bias[...]
        return out.astype(x.dtype)  # LoRA's float32 matrices widen it


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, or the last axes together, computed in float32."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], eps: float, zero_centred: bool, make: Maker):
        self.eps, self.zero_centred, self.axes = eps, zero_centred, tuple(range(-len(shape), 0))
        self.scale = make.constant(0.0 if zero_centred else 1.0, shape, axes)

    def __call__(self, x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        """Normalise each vector. (The families differ in where they round: Gemma scales before, the others after.)"""
        wide = unit(x, self.eps, self.axes)
        if self.zero_centred:
            return (wide * (1.0 + self.scale[...].astype(jnp.float32))).astype(x.dtype)
        return self.scale[...] * wide.astype(x.dtype)


def unit(x: Float[Array, "*N D"], eps: float, axes: tuple[int, ...] = (-1,)) -> Float[Array, "*N D"]:
    """Return vectors divided by their root mean square, float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=axes, keepdims=True) + eps)
