"""The mesh (axes data, fsdp, tensor; 1×1×1 on a laptop) and the table of sharding rules from logical to mesh axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from colm_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or batch -> mesh axes that shard it.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "layers": (),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "slots": (),  # sequences of a decoding batch: each is updated at its own position
    "cache": (),
    "ff": ("tensor",),
    "experts": (),
    "networks": ("tensor",),  # of a mixture; where they do not divide, each is split by ff
    "scores": (),  # a router's outputs
    "rank": (),
    "latent": (),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Create a mesh over the first data · fsdp · tensor of `devices`, by default of all, in their physical order.

    Raises:
      UserError: too few devices, unused devices in a job of several processes, or a size below 1.

    Example:
      >>> from colm_jax import make_mesh
      >>> dict(make_mesh().shape)  # one device, as without a mesh
      {'data': 1, 'fsdp': 1, 'tensor': 1}
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
            f"as in mesh 1,{len(devices)},1"
        )
    # A mesh axis may be part of a physical one; otherwise `1,2,8` would not fit 4×4 chips.
    placed = create_device_mesh(sizes, devices[:wanted], allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def reshaped(mesh: Mesh, sizes: tuple[int, int, int] | None) -> Mesh:
    """Return a mesh of other sizes over the same devices in the same order, so that one program can use both.

    Raises:
      UserError: the sizes do not use all devices.
    """
    if sizes is None:
        return mesh
    if min(sizes) < 1 or math.prod(sizes) != mesh.size:
        named = ",".join(map(str, sizes))
        raise UserError(f"expert_mesh {named}: must use all {mesh.size} devices of the base's mesh")
    return Mesh(mesh.devices.reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_of(value: Any) -> Mesh | AbstractMesh | None:
    """Return the mesh that holds an array or a quantised kernel, traced or not; None without one or in shard_map."""
    leaf = jax.tree.leaves(value)[0]
    sharding = jax.typeof(leaf).sharding if isinstance(leaf, jax.core.Tracer) else leaf.sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    return sharding.mesh if set(sharding.mesh.axis_types) == {AxisType.Auto} else None


def splits_of(mesh: Mesh | AbstractMesh, axes: tuple[str, ...], shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the mesh axes that split each axis of an array with these logical axes.

    An axis not divisible by its mesh axes is not sharded. A mesh axis goes to the first that can use it: in a mixture,
    to `networks` before `ff`. `colm inspect` shows the result, so that an unsharded axis is visible.
    """
    used: set[str] = set()

    def split(axis: str, size: int) -> tuple[str, ...]:
        mesh_axes = tuple(a for a in RULES[axis] if mesh.shape[a] > 1)
        if size % math.prod(mesh.shape[a] for a in mesh_axes) or used & set(mesh_axes):
            return ()
        used.update(mesh_axes)
        return mesh_axes

    return tuple(split(axis, size) for axis, size in zip(axes, shape, strict=True))


def spec_of(mesh: Mesh | AbstractMesh, axes: tuple[str, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Return `splits_of` as the sharding of an array."""
    return PartitionSpec(*[split or None for split in splits_of(mesh, axes, shape)])


def shardings(mesh: Mesh, state: Any) -> Any:
    """Return the sharding of every parameter of an NNX state, by the `axes` in its metadata; same tree as `state`."""

    def of(variable):
        return variable.replace(NamedSharding(mesh, spec_of(mesh, variable.get_metadata()["axes"], variable.shape)))

    return jax.tree.map(of, state, is_leaf=lambda x: hasattr(x, "get_metadata"))


def on_mesh(state: Any, mesh: Mesh) -> Any:
    """Put weights on the mesh by their logical axes; give abstract arrays the same shardings."""

    def put(x, to):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
        return jax.device_put(x, to)

    return jax.tree.map(put, state, shardings(mesh, state))


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of batches and activations, which is along their first axis."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def local_rows(mesh: Mesh, rows: int) -> list[int]:
    """Return the rows of a sharded batch that are on this process's devices; with one process, all of them."""
    places = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return sorted({row for place in places if place is not None for row in range(rows)[place[0]]})


def global_batch(mesh: Mesh, rows: int, here: Sequence[int], local: np.ndarray) -> jax.Array:
    """Create a sharded batch of `rows` rows, of which this process supplies the rows `here`."""
    place = np.empty(rows, np.int64)
    place[here] = np.arange(len(here))

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return local[place[index[0]]]

    return jax.make_array_from_callback((rows, *local.shape[1:]), batch_sharding(mesh), part)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the replicated sharding."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(value: Any, batch: NamedSharding | None) -> Any:
    """Replicate a value over a batch's mesh, inside a program, so that every process can read it."""
    return value if batch is None else jax.lax.with_sharding_constraint(value, replicated(batch.mesh))


def beside(value: Any, weights: Any) -> Any:
    """Return a tree of new arrays where these weights are, if they are on one device, as what programs return is.

    JAX compiles a program once for arrays that may be anywhere and once for those that are somewhere.
    """
    leaf = next(leaf for leaf in jax.tree.leaves(weights))
    placed = isinstance(leaf, jax.Array) and getattr(leaf, "committed", False) and len(leaf.sharding.device_set) == 1
    if not placed:
        return value
    sharding = leaf.sharding
    where = replicated(sharding.mesh) if isinstance(sharding, NamedSharding) else sharding
    return jax.device_put(value, where)
