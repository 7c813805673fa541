"""Put a packed weight on the devices as a `PackedKernel`, if its groups fit the kernel's axes."""

import math

import jax
import numpy as np

from colm_jax.checkpoints.quantized.packed import Packed
from colm_jax.models.quantized import PackedKernel
from colm_jax.parallel import spec_of

_LEAST = 8  # inputs to a scale: with fewer, scales take more memory than codes


def tiles(kind: str, group: int, inputs: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the number of scales along each input axis; None if the weight cannot be kept in its groups.

    A group may be a run of whole heads or divide a head. Any other is halved and so on: its scale is repeated.
    """
    total, inner, pair = math.prod(inputs), inputs[-1], 2 if kind in ("int4", "float4") else 1
    if inner % pair:
        return None
    if group >= total:
        return (1,) * len(inputs)
    if len(inputs) == 2 and group % inner == 0 and total % group == 0:
        return total // group, 1
    size = math.gcd(group, inner)
    if size < min(group, _LEAST) or size % pair:
        return None
    return *inputs[:-1], inner // size


def on_host(packed: Packed, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> PackedKernel | None:
    """Return a weight as a kernel [inputs..., outputs...] of NumPy arrays; None if it cannot be kept in its groups."""
    counts = tiles(packed.kind, packed.group, inputs)
    if counts is None:
        return None
    total, each = math.prod(inputs), math.prod(inputs) // math.prod(counts)
    columns = np.arange(math.prod(counts)) * each // packed.group
    ones = (1,) * len(outputs)

    def spread(part: np.ndarray | None) -> np.ndarray | None:
        if part is None:
            return None
        part = part[:, columns]
        if len(part) == 1:
            return part.T.reshape(*counts, *ones)
        rows = part if packed.block == 1 else np.repeat(part, packed.block, axis=0)[: math.prod(outputs)]
        return np.ascontiguousarray(rows.T).reshape(*counts, *outputs)

    codes, shape = packed.codes.T, (*inputs, *outputs)
    if packed.kind in ("int4", "float4"):
        plain = codes.view(np.uint8)
        codes = plain[1::2] << 4
        codes |= plain[0::2] & 15
        shape = (*inputs[:-1], inputs[-1] // 2, *outputs)
    order = None if packed.order is None else packed.order.reshape(*inputs, *ones)
    assert total == packed.codes.shape[1]
    return PackedKernel(codes.reshape(shape), spread(packed.scales), spread(packed.zeros), order, packed.kind)


def put(kernel: PackedKernel, axes: tuple[str, ...], mesh: jax.sharding.Mesh) -> PackedKernel:
    """Put a kernel on the mesh, each part along the axes that divide it."""

    def place(part: np.ndarray) -> jax.Array:
        sharding = jax.sharding.NamedSharding(mesh, spec_of(mesh, axes, part.shape))
        return jax.make_array_from_callback(part.shape, sharding, lambda index: np.ascontiguousarray(part[index]))

    return jax.tree.map(place, kernel)
