"""Where arrays live: the mesh, one table from logical axes to mesh axes, and the processes that share a job."""

from colm_jax.parallel.mesh import (
    RULES,
    batch_sharding,
    batch_sharding_of,
    global_batch,
    local_rows,
    make_mesh,
    on_mesh,
    replicate,
    replicated,
    reshaped,
    shardings,
    spec_of,
)
from colm_jax.parallel.processes import barrier, gather_to_host, is_first, join, on_first

__all__ = [
    "RULES",
    "barrier",
    "batch_sharding",
    "batch_sharding_of",
    "gather_to_host",
    "global_batch",
    "is_first",
    "join",
    "local_rows",
    "make_mesh",
    "on_first",
    "on_mesh",
    "replicate",
    "replicated",
    "reshaped",
    "shardings",
    "spec_of",
]
