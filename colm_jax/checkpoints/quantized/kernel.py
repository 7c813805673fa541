"""Put a packed weight on the devices as a `PackedKernel`, if its groups fit the kernel's axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from colm_jax.checkpoints.quantized.packed import Opened, Packed, PackedOnDisk
from colm_jax.checkpoints.reader import StoredPart, aligned
from colm_jax.errors import UserError
from colm_jax.models.quantize import QUANTIZED
from colm_jax.models.quantized import PackedKernel
from colm_jax.parallel import spec_of

_ROWS = 64
_LEAST = 8  # inputs to a scale: with fewer, scales take more memory than codes


def tiles(kind: str, group: int, inputs: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the number of scales along each input axis; None if the weight cannot be kept in its groups.

    A group may consist of whole heads or divide a head. Any other group is split into equal parts that divide a
    head, and its scale is repeated for each part.
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
        codes = aligned((len(plain) // 2, plain.shape[1]), np.dtype(np.uint8))
        for start in range(0, len(codes), _ROWS):  # few at a time: their copies take memory
            rows = slice(2 * start, 2 * (start + _ROWS))
            np.bitwise_or(plain[rows][1::2] << 4, plain[rows][0::2] & 15, out=codes[start : start + _ROWS])
        shape = (*inputs[:-1], inputs[-1] // 2, *outputs)
    order = None if packed.order is None else packed.order.reshape(*inputs, *ones)
    assert total == packed.codes.shape[1]
    return PackedKernel(codes.reshape(shape), spread(packed.scales), spread(packed.zeros), order, packed.kind)


def inputs_of(held: StoredPart) -> int:
    """Return the number of input axes of a kernel in a packed tensor; 0 if its layout is of no kernel."""
    tensor, part = held.tensor, held.part
    if not isinstance(tensor, PackedOnDisk | Opened):
        return 0
    if tensor.transposed:
        return 1 if part.stored.layout == "same" and len(part.shape) == 2 and part.rows is None else 0
    return part.stored.inputs if part.columns is None else 0


def form(held: StoredPart, variable: nnx.Variable, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Any:
    """Return the types and shapes of a part as a kernel on the devices; None if it cannot be kept in its groups.

    A mixture with act-order is not kept: its networks are multiplied under `shard_map`, where the order would span
    devices.
    """
    tensor, inputs = held.tensor, inputs_of(held)
    if not isinstance(tensor, PackedOnDisk) or not inputs:
        return None
    shape = held.part.shape
    counts = tiles(tensor.kind, tensor.group, shape[:inputs])
    if counts is None:
        return None
    pair = 2 if tensor.kind in ("int4", "float4") else 1
    codes = (*shape[: inputs - 1], shape[inputs - 1] // pair, *shape[inputs:])
    axes = variable.get_metadata()["axes"]
    if "networks" in axes:
        axes = axes[axes.index("networks") :]
        networks = variable.shape[len(held.part.index) - 1]
        split = spec_of(mesh, axes, (networks, *shape)) != spec_of(mesh, axes, (networks, *codes))
        if split or tensor.ordered:
            return None
    outputs = tensor.shape[1 if tensor.transposed else 0]
    ones = (1,) * len(shape[inputs:])
    scale = (*counts, *(ones if tensor.block >= outputs else shape[inputs:]))
    types = {"int8": np.int8, "float8": ml_dtypes.float8_e4m3fn}

    def abstract(sizes: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    return PackedKernel(
        abstract(codes, types.get(tensor.kind, np.uint8)),
        abstract(scale, tensor.scale),
        abstract(scale, np.int8) if tensor.zeros else None,
        abstract((*shape[:inputs], *ones), np.int32) if tensor.ordered else None,
        tensor.kind,
    )


def forms(
    held: Sequence[StoredPart],
    abstract: Mapping[str, nnx.Variable],
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> dict[str, PackedKernel]:
    """Return, by path, the form of each parameter that can be kept as it is stored: all its parts have the same.

    Args:
      held: the parts of all parameters.
      abstract: the parameters, by path.
      mesh: the devices.
    """
    found: dict[str, Any] = {}
    for one in held:
        path = one.part.path
        own = form(one, abstract[path], mesh) if QUANTIZED.fullmatch(path) else None
        found[path] = own if found.get(path, own) == own else None
    return {path: own for path, own in found.items() if own is not None}


def read_kernel(
    held: StoredPart, opened: Opened, dtype: np.dtype, axes: tuple[str, ...], mesh: jax.sharding.Mesh
) -> PackedKernel:
    """Put what an opened tensor holds of a parameter on the mesh, as it is; `dtype` is that of activations.

    Raises:
      UserError: a weight that is not finite in `dtype`, in which the product takes it.
    """
    if not opened.packed.fits(dtype):
        raise UserError(f"{opened.file}: tensor {opened.name!r} holds NaN or infinite values (read as {dtype})")
    part, inputs = held.part, inputs_of(held)
    rows = part.columns if opened.transposed else part.rows
    packed = opened.packed if rows is None else opened.packed.take(slice(rows.start, rows.stop, rows.step))
    kernel = on_host(packed, part.shape[:inputs], part.shape[inputs:])
    assert kernel is not None
    return put(kernel, axes, mesh)


def put(kernel: PackedKernel, axes: tuple[str, ...], mesh: jax.sharding.Mesh) -> PackedKernel:
    """Put a kernel on the mesh, each part along the axes that divide it."""

    def place(part: np.ndarray) -> jax.Array:
        sharding = jax.sharding.NamedSharding(mesh, spec_of(mesh, axes, part.shape))
        shards: dict[tuple, np.ndarray] = {}
        placed = []
        for device, index in sharding.addressable_devices_indices_map(part.shape).items():
            key = tuple(s.indices(size)[:2] for s, size in zip(index or (), part.shape))
            if key not in shards:
                shards[key] = np.ascontiguousarray(part[index])
            placed.append(jax.device_put(shards[key], device))
        return jax.make_array_from_single_device_arrays(part.shape, sharding, placed)

    return jax.tree.map(place, kernel)
