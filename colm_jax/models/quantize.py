"""Weight-only quantisation of a frozen model by qwix: linear kernels in int8 or int4, all arithmetic as before."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from jaxtyping import Array, Float

BITS: dict[str, Any] = {"int8": jnp.int8, "int4": jnp.int4}
INT4_TILE = 32  # inputs that share a scale, where it divides them; int8 has one scale an output

# Paths in Decoder of what is quantised: embedding, head, router, norms and biases stay as they are, and the kernel of
# latent attention that queries absorb.
QUANTIZED = re.compile(
    r"layers(\.\d+)?\.(attention\.(?!key_value_up\.)\w+\.kernel|feed_forward\.(shared\.)?(gate|up|down)(\.kernel)?)"
)


@partial(jax.jit, static_argnames=("inputs", "kind"))
def quantize_kernel(kernel: Float[Array, "..."], inputs: int, kind: str) -> qwix.QArray:
    """Return one layer's kernel [inputs..., outputs...], symmetric, by its largest value: one scale an output (and
    tile).
    """
    channels = range(inputs, kernel.ndim)
    size = kernel.shape[inputs - 1]
    tiles = {inputs - 1: INT4_TILE} if kind == "int4" and size % INT4_TILE == 0 else {}
    return qwix.quantize(kernel, BITS[kind], channelwise_axes=tuple(channels), tiled_axes=tiles)
