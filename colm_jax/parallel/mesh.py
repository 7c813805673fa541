"""The mesh (axes data, fsdp, tensor; 1×1×1 on a laptop) and the one table from logical axes to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from colm_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or batch -> mesh axes that split it.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "layers": (),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "slots": (),  # texts of a decoding batch: each is written at a place of its own
    "cache": (),
    "ff": ("tensor",),
    "experts": (),
    "networks": (),
    "rank": (),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the first data · fsdp · tensor of `devices`, by default of all there are, neighbours side by side.

    Raises:
      UserError: more devices asked for than there are, fewer where several processes share them, or a size below 1.
    """
    sizes, shared = (data, fsdp, tensor), devices is None and jax.process_count() > 1
    devices = jax.devices() if devices is None else devices
    wanted = data * fsdp * tensor
    named = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
    if min(sizes) < 1 or wanted > len(devices):
        raise UserError(f"mesh {named} needs {wanted} devices (each axis at least 1); there are {len(devices)}")
    if shared and wanted < len(devices):
        raise UserError(
            f"mesh {named} has {wanted} of {len(devices)} devices; several processes share all of them, "
            f"as in --mesh 1,{len(devices)},1"
        )
    # A mesh axis may be a part of a physical one, or `1,2,8` would not lie on 4×4 chips.
    placed = create_device_mesh(sizes, devices[:wanted], allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def reshaped(mesh: Mesh, sizes: tuple[int, int, int] | None) -> Mesh:
    """The same devices in the same order as another mesh, so that one program may hold models of both.

    Raises:
      UserError: the sizes do not take all of them.
    """
    if sizes is None:
        return mesh
    if min(sizes) < 1 or math.prod(sizes) != mesh.size:
        named = ",".join(map(str, sizes))
        raise UserError(
            f"--expert_mesh {named}: has to take the {mesh.size} devices of the base's mesh, no more, no less"
        )
    return Mesh(mesh.devices.reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def spec_of(mesh: Mesh | AbstractMesh, axes: tuple[str, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """How an array of these logical axes is split: an axis whose size the mesh does not divide stays whole.

    `colm inspect` shows the result, so that nothing stays whole unseen.
    """

    def split(axis: str, size: int):
        mesh_axes = tuple(a for a in RULES[axis] if mesh.shape[a] > 1)
        parts = 1
        for a in mesh_axes:
            parts *= mesh.shape[a]
        return mesh_axes if mesh_axes and size % parts == 0 else None

    return PartitionSpec(*(split(axis, size) for axis, size in zip(axes, shape, strict=True)))


def shardings(mesh: Mesh, state: Any) -> Any:
    """The sharding of every parameter of an NNX state, by the `axes` in its metadata; same tree as `state`."""

    def of(variable):
        return variable.replace(NamedSharding(mesh, spec_of(mesh, variable.get_metadata()["axes"], variable.shape)))

    return jax.tree.map(of, state, is_leaf=lambda x: hasattr(x, "get_metadata"))


def on_mesh(state: Any, mesh: Mesh) -> Any:
    """Weights on the mesh by their logical axes; of shapes, shapes that know where they would lie."""

    def put(x, to):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
        return jax.device_put(x, to)

    return jax.tree.map(put, state, shardings(mesh, state))


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of batches and activations: along their first axis, the texts."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def local_rows(mesh: Mesh, rows: int) -> list[int]:
    """Which rows of a batch that is split by texts lie on this process's devices; all of them with one process."""
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return sorted({row for place in places if place is not None for row in range(rows)[place[0]]})


def global_batch(mesh: Mesh, rows: int, here: Sequence[int], local: np.ndarray) -> jax.Array:
    """A batch of `rows` rows, split by texts, of which this process brings the rows `here`."""
    place = np.empty(rows, np.int64)
    place[here] = np.arange(len(here))

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return local[place[index[0]]]

    return jax.make_array_from_callback((rows, *local.shape[1:]), batch_sharding(mesh), part)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(value: Any, batch: NamedSharding | None) -> Any:
    """Inside a program: the value whole on each device of a batch's mesh, so that every process can read it."""
    return value if batch is None else jax.lax.with_sharding_constraint(value, replicated(batch.mesh))
