"""Parallelism: the mesh, the table of sharding rules from logical axes to mesh axes, and multi-process jobs."""

from colm_jax.parallel.mesh import (
    RULES,
    batch_sharding,
    beside,
    global_batch,
    local_rows,
    make_mesh,
    mesh_of,
    on_mesh,
    replicate,
    replicated,
    reshaped,
    shardings,
    spec_of,
    splits_of,
)
from colm_jax.parallel.processes import asked_to_stop, barrier, heed_stop, is_first, join, on_first, to_host, watched

__all__ = [
    "RULES",
    "asked_to_stop",
    "barrier",
    "batch_sharding",
    "beside",
    "global_batch",
    "heed_stop",
    "is_first",
    "join",
    "local_rows",
    "make_mesh",
    "mesh_of",
    "on_first",
    "on_mesh",
    "replicate",
    "replicated",
    "reshaped",
    "shardings",
    "spec_of",
    "splits_of",
    "to_host",
    "watched",
]
