"""The mesh (axes data, fsdp, tensor; 1×1×1 on a laptop) and the one table from logical axes to mesh axes."""

from collections.abc import Sequence
from typing import Any

import jax
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
      UserError: more devices asked for than there are, or a size below 1.
    """
    sizes = (data, fsdp, tensor)
    devices = jax.devices() if devices is None else devices
    wanted = data * fsdp * tensor
    if min(sizes) < 1 or wanted > len(devices):
        named = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
        raise UserError(f"mesh {named} needs {wanted} devices (each axis at least 1); there are {len(devices)}")
    # A mesh axis may be a part of a physical one, or `1,2,8` would not lie on 4×4 chips.
    placed = create_device_mesh(sizes, devices[:wanted], allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


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


def by_text(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of batches and activations: along their first axis, the texts."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
