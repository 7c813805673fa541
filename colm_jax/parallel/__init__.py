"""Where arrays live: the mesh, one table from logical axes to mesh axes, and the processes that share a job."""

from colm_jax.parallel.mesh import (
    RULES,
    by_text,
    from_rows,
    make_mesh,
    on_mesh,
    replicated,
    reshaped,
    rows_here,
    shardings,
    spec_of,
)
from colm_jax.parallel.processes import is_first, join, on_first, wait, whole

__all__ = [
    "RULES",
    "by_text",
    "from_rows",
    "is_first",
    "join",
    "make_mesh",
    "on_first",
    "on_mesh",
    "replicated",
    "reshaped",
    "rows_here",
    "shardings",
    "spec_of",
    "wait",
    "whole",
]
