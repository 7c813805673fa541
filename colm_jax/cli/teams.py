"""Loading the team of a command's flags."""

from pathlib import Path
from typing import Any

from colm_jax.cli.configuration import make_remote
from colm_jax.cli.flags import Flags, mesh_of


def load_team(flags: Flags) -> Any:
    """Return the team of --base and --expert on --mesh, with a progress bar."""
    from colm_jax import console
    from colm_jax.parallel import reshaped
    from colm_jax.team import CoLM

    mesh = mesh_of(flags)
    with console.bar("loading", bytes_=True) as bar:
        return CoLM.from_pretrained(
            flags.base,
            flags.expert,
            mesh=mesh,
            expert_mesh=reshaped(mesh, flags.expert_mesh),
            dtype=flags.dtype or "float32",
            expert_dtype=flags.expert_dtype,
            spans=flags.spans or "auto",
            remote=make_remote(flags.bindings, vars(flags)),
            gate=flags.gate,
            progress=lambda model, done, total: bar.to(done, total, Path(model).name),
        )
