"""What several commands make of the same flags."""

import argparse

import jax

from colm_jax.errors import UserError
from colm_jax.parallel import make_mesh

Flags = argparse.Namespace


def mesh_sizes(flags: Flags, name: str = "mesh") -> tuple[int, int, int] | None:
    """The sizes of --mesh (or --expert_mesh), where it is given."""
    given = getattr(flags, name)
    if given is None:
        return None
    try:
        data, fsdp, tensor = (int(size) for size in given.split(","))
    except ValueError:
        raise UserError(f"--{name} {given}: three whole numbers, data,fsdp,tensor, as in 1,4,2") from None
    if min(data, fsdp, tensor) < 1:
        raise UserError(f"--{name} {given}: sizes are at least 1")
    return data, fsdp, tensor


def mesh_of(flags: Flags) -> jax.sharding.Mesh:
    """The devices that --mesh asks for."""
    return make_mesh(*(mesh_sizes(flags) or (1, 1, 1)))
