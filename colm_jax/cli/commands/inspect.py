"""`colm inspect`: facts of models, and what endpoints can do; no weights are read."""

from typing import Any

from colm_jax.cli.flags import Flags, Parser, mesh_flag
from colm_jax.settings.models import EXPERT, is_endpoint
from colm_jax.settings.remote import RemoteSettings

EXAMPLE = "colm inspect SMALL LARGE"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    parser.add_argument("model", nargs="+", metavar="MODEL", help=f"{EXPERT}; of several, the base first")
    mesh_flag(parser)
    parser.add_argument("--json", action="store_true", help="print all facts as JSON, for programs")


def run(flags: Flags) -> dict[str, Any] | None:
    """Show the facts of models, and of several whether they can pair; with --json, return them."""
    import jax

    from colm_jax import console
    from colm_jax.checkpoints.describe import describe, describe_pair
    from colm_jax.experts.remote import ask
    from colm_jax.parallel.mesh import MESH_AXES
    from colm_jax.report.inspection import show_models

    mesh = jax.sharding.AbstractMesh(flags.mesh or (1, 1, 1), MESH_AXES)
    endpoints = [model for model in flags.model if is_endpoint(model)]
    asked = [{"endpoint": name, "abilities": str(ask(name, flags.bindings.make(RemoteSettings)))} for name in endpoints]
    found: dict[str, Any] = {"models": [describe(model, mesh) for model in flags.model if model not in endpoints]}
    if len(flags.model) == 1 and not asked:
        (found,) = found["models"]
    elif len(flags.model) > 1:
        found = {"pair": describe_pair(flags.model), **found}
    if asked:
        found["endpoints"] = asked
    if flags.json:
        return found
    show_models(found, console.output)
    return None
