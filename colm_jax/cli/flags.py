"""Flags made from settings, and the flags that several commands have in common.

A flag of a setting has no default of its own: where it is not given, gin's bindings and then the setting's default
count. The help states the default.
"""

import argparse
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from colm_jax.settings.fields import declared, default_of, field_of, types_of
from colm_jax.settings.models import EXPERT, EXPERT_DTYPES, FLOAT_TYPES, Model
from colm_jax.settings.remote import RemoteSettings
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import Training

STORED = "kernels of a quantised checkpoint stay as stored"
_BASE = "float32; kernels of a quantised base that is not trained stay as stored"

REMOTE = ("max_expert_calls", "max_sent_characters", "window", "redact", "ledger")  # what may leave the machine

Flags = argparse.Namespace
Parser = Any  # an ArgumentParser, or a group of one


def setting_flags(parser: Parser, kind: type, *names: str, repeatable: Sequence[str] = (), **help_of: str) -> None:
    """Add a flag for each of these settings of a class.

    Args:
      parser: gets the flags.
      kind: the settings class.
      names: of the settings, and so of the flags.
      repeatable: those of them that may be given several times.
      help_of: help texts of single flags, where a command means something special.
    """
    for name in names:
        entry, wanted = declared(field_of(kind, name)), types_of(kind)[name]
        text = help_of.get(name, entry.help)
        default = default_of(kind, name)
        if name not in help_of and default is not MISSING and default not in (None, ()):
            text += f" (default: {default})"
        options: dict[str, Any] = {"help": text.replace("%", "%%")}
        single, several = _item_type(wanted)
        if single is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = single
            options |= {"metavar": entry.metavar} if entry.metavar else {}
            options |= {"choices": entry.choices} if entry.choices and single is str and not entry.metavar else {}
            if name in repeatable or (several and single is str):
                options["action"] = "append"
            elif several:
                options |= {"nargs": "+", "action": "extend"}
        parser.add_argument(f"--{name}", **options)


def _item_type(wanted: Any) -> tuple[Any, bool]:
    """Return the type of one value of a flag, and whether there may be several."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        plain = next((part for part in parts if part in (int, float, str, bool)), None)
        return (plain, False) if plain is not None else _item_type(next(p for p in parts if p is not type(None)))
    if origin in (tuple, Sequence):
        return parts[0], True
    return wanted, False


def given(flags: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the settings of a class that flags gave."""
    found = {name: value for name, value in flags.items() if value is not None and name in types_of(kind)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def sizes(text: str) -> tuple[int, int, int]:
    """Return the value of --mesh: sizes along data, fsdp and tensor."""
    try:
        data, fsdp, tensor = (int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: three whole numbers, data,fsdp,tensor, as in 1,4,2") from None
    if min(data, fsdp, tensor) < 1:
        raise argparse.ArgumentTypeError(f"{text}: sizes are at least 1")
    return data, fsdp, tensor


def mesh_flag(parser: Parser, default: str = "1,1,1") -> None:
    """Add --mesh."""
    text = f"{declared(field_of(Model, 'mesh')).help} (default: {default})"
    parser.add_argument("--mesh", type=sizes, metavar="D,F,T", help=text)


def expert_mesh_flag(parser: Parser) -> None:
    """Add --expert_mesh."""
    text = "the experts' mesh, over the same devices (default: as --mesh)"
    parser.add_argument("--expert_mesh", type=sizes, metavar="D,F,T", help=text)


def dtype_flags(parser: Parser, default: str = "float32", expert_default: str | None = None) -> None:
    """Add --dtype and --expert_dtype."""
    text = f"of weights, activations and caches (default: {default})"
    parser.add_argument("--dtype", choices=FLOAT_TYPES, help=text)
    text = f"of the experts; int8, int4: weights only (default: {expert_default or f'as --dtype; {STORED}'})"
    parser.add_argument("--expert_dtype", choices=EXPERT_DTYPES, help=text)


def expert_flag(parser: Parser, required: bool = False, text: str = f"{EXPERT}; repeat for several experts") -> None:
    """Add --expert."""
    parser.add_argument("--expert", "--expert2", action="append", required=required, metavar="MODEL", help=text)


def team_flags(parser: Parser) -> None:
    """Add the flags of a team that is loaded: --base, --expert, --spans, and how they are held."""
    parser.add_argument("--base", required=True, metavar="MODEL", help=declared(field_of(RunConfig, "base")).help)
    text = "gate without its base, a directory or OWNER/NAME[@REVISION] (default: the gate of --base)"
    parser.add_argument("--gate", metavar="GATE", help=text)
    expert_flag(parser, text=f"{EXPERT}; repeat for several experts (default: the experts of the team)")
    setting_flags(parser, RunConfig, "spans")
    setting_flags(parser, RemoteSettings, *REMOTE)
    dtype_flags(parser, default=_BASE, expert_default=f"as the team was trained, or --dtype; {STORED}")
    mesh_flag(parser)
    expert_mesh_flag(parser)


def run_flags(parser: Parser, *names: str) -> None:
    """Add the flags of a run: its models, its training, and `names`, other settings of RunConfig."""
    parser.add_argument(
        "--base", metavar="MODEL", help=f"{declared(field_of(RunConfig, 'base')).help} (or bind Run.base)"
    )
    expert_flag(parser, text=f"{EXPERT}; repeat for several experts (or bind Run.experts)")
    dtype_flags(parser, default=_BASE)
    mesh_flag(parser)
    expert_mesh_flag(parser)
    setting_flags(parser, Training, "objective", "trainable", "gate_inputs", "gate_ridge", "seed")
    setting_flags(parser, RunConfig, "spans", "expert_scores", "data", *names)
    setting_flags(parser, RemoteSettings, *REMOTE)


def task_flag(parser: Parser) -> None:
    """Add --task to a command that calibrates."""
    names = ", ".join(declared(field_of(RunConfig, "task")).choices)
    text = f"decode and grade the answers: {names} (default: next-token accuracy)"
    parser.add_argument("--task", metavar="TASK", help=text)


def out_flag(parser: Parser, metavar: str = "DIR", text: str | None = None) -> None:
    """Add --out."""
    parser.add_argument("--out", required=True, metavar=metavar, help=text)


def distributed_flag(parser: Parser) -> None:
    """Add --distributed."""
    text = (
        "this is one of several processes that share the job, its --mesh and its files: auto (Cloud TPU, Slurm, "
        "GKE), or the address of process 0, the number of processes, and the number of this one"
    )
    parser.add_argument("--distributed", metavar="auto|HOST:PORT,COUNT,NUMBER", help=text)


def mesh_of(flags: Flags) -> Any:
    """Return the devices that --mesh asks for."""
    from colm_jax.parallel import make_mesh

    return make_mesh(*(flags.mesh or (1, 1, 1)))
