"""`colm inspect`: facts of models, and what endpoints can do; no weights are read."""

from typing import Any

from colm_jax.cli.flags import Flags, Parser, mesh_flag
from colm_jax.settings.models import EXPERT, is_endpoint
from colm_jax.settings.remote import RemoteSettings

EXAMPLE = "colm inspect SMALL LARGE\n         colm inspect SMALL --gate GATE"


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    parser.add_argument("model", nargs="+", metavar="MODEL", help=f"{EXPERT}; of several, the base first")
    text = "a gate without its base, or a team's: what it is, and whether it is one for the first model"
    parser.add_argument("--gate", metavar="GATE", help=text)
    mesh_flag(parser)
    parser.add_argument("--json", action="store_true", help="print all facts as JSON, for programs")


def run(flags: Flags) -> dict[str, Any] | None:
    """Show the facts of models, and of several whether they can pair; with --json, return them."""
    import jax

    from colm_jax import console
    from colm_jax.checkpoints.describe import describe, describe_pair
    from colm_jax.checkpoints.gates import describe_gate, names_gate
    from colm_jax.experts.remote import ask
    from colm_jax.parallel.mesh import MESH_AXES
    from colm_jax.report.inspection import show_models

    mesh = jax.sharding.AbstractMesh(flags.mesh or (1, 1, 1), MESH_AXES)
    alone = [model for model in flags.model if not is_endpoint(model) and names_gate(model)]
    models = [model for model in flags.model if model not in alone]
    gates = [describe_gate(model) for model in alone]
    if flags.gate is not None:
        gates.append(describe_gate(flags.gate, models[0] if models and not is_endpoint(models[0]) else None))
    endpoints = [model for model in models if is_endpoint(model)]
    asked = [{"endpoint": name, "abilities": str(ask(name, flags.bindings.make(RemoteSettings)))} for name in endpoints]
    found: dict[str, Any] = {"models": [describe(model, mesh) for model in models if model not in endpoints]}
    if len(models) == 1 and not asked and not gates:
        (found,) = found["models"]
    elif len(models) > 1:
        found = {"pair": describe_pair(models), **found}
    if gates:
        found["gates"] = gates
    if asked:
        found["endpoints"] = asked
    if flags.json:
        return found
    show_models(found, console.output)
    return None
