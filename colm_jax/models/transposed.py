"""Kernels stored by output: the form in which a CPU decodes.

A decode step multiplies few rows with many kernels, and should take as long as reading the kernels takes. XLA's CPU
backend gives more than one row to a library that first copies the right operand into tiles. With a kernel [I, O] that
is the kernel, copied in every step. A kernel stored [O, I] can be the left operand, and the few rows the right one.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

LEAST = 2**20  # bytes of a kernel that is stored so; smaller ones are in a cache, where a copy costs little


@partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["outputs"])
@dataclass(frozen=True)
class TransposedKernel:
    """A kernel [inputs..., outputs...] as a matrix with a row for each output; inputs and outputs are joined."""

    rows: Any  # [O, I]
    outputs: tuple[int, ...]  # the kernel's output axes


nnx.register_data_type(TransposedKernel)


def transposed(kernel: nnx.Param, inputs: int) -> nnx.Param:
    """Return a kernel with `inputs` input axes stored by output, where that pays; else the kernel itself.

    It pays for a large float32 array on one CPU device.
    """
    value = kernel.get_value()
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return kernel
    devices = value.devices()
    if len(devices) > 1 or next(iter(devices)).platform != "cpu" or value.dtype != jnp.float32 or value.nbytes < LEAST:
        return kernel
    stored = TransposedKernel(_rows(value, inputs), value.shape[inputs:])
    return nnx.Param(stored, **kernel.get_metadata())


@partial(jax.jit, static_argnames="inputs")
def _rows(kernel: Float[Array, "..."], inputs: int) -> Float[Array, "O I"]:
    return kernel.reshape(math.prod(kernel.shape[:inputs]), -1).T


def transposed_product(x: Float[Array, "..."], kernel: TransposedKernel) -> Float[Array, "..."]:
    """Return the product of activations with a kernel: of their last axes with its inputs, in float32."""
    axes, size = x.ndim, 1
    while size < kernel.rows.shape[1]:
        axes -= 1
        size *= x.shape[axes]
    found = rows_left(x.reshape(-1, size), kernel.rows)
    return found.reshape(*x.shape[:axes], *kernel.outputs)


def rows_left(x: Float[Array, "N I"], rows: Float[Array, "O I"]) -> Float[Array, "N O"]:
    """Return the products of each vector with each row of a matrix, which is the left operand; float32."""
    if len(x) == 1:
        found = jnp.dot(rows, x[0], precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
        return found[None]
    columns = jax.lax.optimization_barrier(x.T)
    found = jnp.dot(rows, columns, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(found).T  # without the barriers XLA swaps the operands back
