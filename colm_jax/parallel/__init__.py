"""Where arrays live: the mesh, one table from logical axes to mesh axes, and the processes that share a job."""

from colm_jax.parallel.mesh import (
    RULES,
    batch_sharding,
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
from colm_jax.parallel.processes import asked_to_stop, barrier, heed_stop, is_first, join, on_first, to_host, witnessed

__all__ = [
    "RULES",
    "asked_to_stop",
    "barrier",
    "batch_sharding",
    "global_batch",
    "heed_stop",
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
    "to_host",
    "witnessed",
]
