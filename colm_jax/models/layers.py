"""What blocks are built of: parameters with logical axes, linear maps (plain, quantised, with LoRA), norms."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from colm_jax.models.quantized import Quantized, quantized_product


def precision_of(dtype: DTypeLike) -> jax.lax.PrecisionLike:
    """Float32 means float32 on every back end; TPUs and GPUs would otherwise multiply in fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


class Fixed(nnx.Variable):
    """A value of a model that is no parameter: no training changes it."""


class Maker:
    """Makes the parameters of a module: stacked over `layers` where that is given, and randomly initialised."""

    def __init__(self, rngs: nnx.Rngs, dtype: DTypeLike, layers: int | None):
        self.rngs, self.dtype, self.layers = rngs, dtype, layers

    def __call__(self, shape: tuple[int, ...], axes: tuple[str, ...], scale: float) -> nnx.Param:
        """Return a parameter, normal with deviation `scale`."""
        shape, axes = self._stacked(shape, axes)
        return nnx.Param((scale * jax.random.normal(self.rngs.params(), shape)).astype(self.dtype), axes=axes)

    def constant(self, value: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
        """Return a parameter that is `value` everywhere."""
        shape, axes = self._stacked(shape, axes)
        return nnx.Param(jnp.full(shape, value, self.dtype), axes=axes)

    def fixed(self, value: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> Fixed:
        """Return float32 numbers that training leaves as they are."""
        shape, axes = self._stacked(shape, axes)
        return Fixed(jnp.full(shape, value, jnp.float32), axes=axes)

    def _stacked(self, shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        return (shape, axes) if self.layers is None else ((self.layers, *shape), ("layers", *axes))


def product(equation: str, x: Float[Array, "..."], kernel: Float[Array, "..."] | Quantized) -> Float[Array, "..."]:
    """Return the einsum of activations and a kernel that may be quantised."""
    precision = precision_of(x.dtype)
    if isinstance(kernel, Quantized):
        return quantized_product(equation, x, kernel, precision)
    return jnp.einsum(equation, x, kernel, precision=precision)


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
        if joined and self.inputs == 2 and not isinstance(kernel, Quantized):
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
