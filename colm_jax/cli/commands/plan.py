"""`colm plan`: memory, work and price of a run on a TPU topology, compiled without hardware."""

from collections.abc import Callable
from typing import Any

from colm_jax.cli.configuration import make_training
from colm_jax.cli.flags import (
    Flags,
    Parser,
    dtype_flags,
    expert_flag,
    expert_mesh_flag,
    given,
    mesh_flag,
    setting_flags,
)
from colm_jax.errors import UserError
from colm_jax.settings.models import MODEL
from colm_jax.settings.plan import PlanSize, Rates, Workload
from colm_jax.settings.run import RunConfig
from colm_jax.settings.training import GateInit, Training

DESCRIPTION = (
    "Compile a run for TPU topologies without hardware (ahead of time): memory and work of each chip, whether it fits, "
    "what to change."
)
EXAMPLE = (
    "colm plan --topology v5e:4x4 --base configs/models/llama2-7b --expert configs/models/llama2-70b "
    "--gin.Training.remat=\"'full'\""
)
_WORK = ("prompts", "prompt_tokens", "new_tokens", "deferral_rate")
_RATES = ("efficiency", "disk_bandwidth", "input_rate", "price_per_chip_hour")


def add_flags(parser: Parser) -> None:
    """Declare the command's flags."""
    text = "as in v5e:4x4, v5p:2x2x4, v6e:16x16"
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help=text)
    text = f"{MODEL}; its weights are not read"
    parser.add_argument("--base", required=True, metavar="MODEL", help=text)
    expert_flag(parser, required=True, text="an expert with the base's tokenizer, likewise; repeat for several")
    mesh_flag(parser, "all chips along fsdp")
    expert_mesh_flag(parser)
    dtype_flags(parser, default="bfloat16", expert_default="as --dtype, also of a quantised checkpoint")
    setting_flags(parser, PlanSize, "length", "rows")
    setting_flags(parser, RunConfig, "expert_scores")
    text = "default: all; a gate alone is fitted on one device"
    setting_flags(parser, Training, "objective", "trainable", trainable=text)
    text = "also estimate hours, chip hours, price and bottlenecks of a run with Training's epochs and batch size"
    parser.add_argument("--launch", action="store_true", help=text)
    launch = parser.add_argument_group("with --launch: how much there is to do, and what is assumed")
    text = "training texts, counted with the base's tokenizer, each cut at --length"
    launch.add_argument("--data", metavar="FILE", help=text)
    text = "tokens of all training texts together (default: --length each)"
    setting_flags(
        launch, Workload, "texts", "tokens", *_WORK, tokens=text, texts="or how many training texts there are"
    )
    setting_flags(launch, Rates, *_RATES)


def check(flags: Flags) -> None:
    """Validate the settings."""
    _training(flags)
    PlanSize(**given(vars(flags), PlanSize))


def _training(flags: Flags) -> Training:
    training = make_training(flags.bindings, vars(flags))
    if training.trainable == "gate":
        raise UserError("--trainable gate: is fitted on one device from hidden states; plan takes all or lora")
    return training


def run(flags: Flags) -> dict[str, Any]:
    """Compile the programs and show what they need."""
    from colm_jax import console
    from colm_jax.checkpoints.describe import packed_parts
    from colm_jax.checkpoints.directory import resolve
    from colm_jax.checkpoints.huggingface import read_config
    from colm_jax.plan.chips import CHIPS
    from colm_jax.plan.plan import Plan, compile_plan
    from colm_jax.plan.table import show_costs

    training, size = _training(flags), PlanSize(**given(vars(flags), PlanSize))
    models = [read_config(resolve(model, weights=False)) for model in (flags.base, *flags.expert)]
    wanted = Plan(
        topology=flags.topology,
        base=models[0],
        experts=tuple(models[1:]),
        packed=tuple(packed_parts(model) for model in flags.expert) if flags.expert_dtype is None else (),
        mesh=flags.mesh,
        expert_mesh=flags.expert_mesh,
        dtype=flags.dtype or "bfloat16",
        expert_dtype=flags.expert_dtype,
        length=size.length,
        rows=size.rows,
        online=flags.expert_scores == "online",
        training=training,
    )
    launching = _launching(flags, wanted)
    with console.bar("compiling", 3 + len(flags.expert)) as bar:
        found = list(compile_plan(wanted, lambda done, program: bar.to(done, note=program)))
    memory = CHIPS[wanted.kind].memory
    show_costs([cost for cost, _ in found], memory, console.errors)
    programs = [{**cost.__dict__, "change": change} for cost, change in found]
    result = {
        "topology": flags.topology,
        "memory_per_chip": memory,
        "fits": all(c.fits for c, _ in found),
        "programs": programs,
    }
    return result if launching is None else result | {"launch": launching([cost for cost, _ in found])}


def _launching(flags: Flags, plan: Any) -> Callable[[list[Any]], dict[str, Any]] | None:
    """Return the function from the plan's costs to hours and price; None if not wanted.

    Its flags are validated here, and the texts are counted.
    """
    from colm_jax import console
    from colm_jax.plan.launch import as_json, estimate, held_up, machine
    from colm_jax.plan.plan import topology_devices
    from colm_jax.plan.table import show_launch

    named = {name for name in ("data", "texts", "tokens", *_WORK, *_RATES) if getattr(flags, name) is not None}
    if not flags.launch:
        if named:
            raise UserError(f"--{min(named)}: is for --launch, which is missing")
        return None
    if ("data" in named) == ("texts" in named):
        raise UserError("--launch: needs --data FILE, or --texts N, but not both")
    if {"data", "tokens"} <= named:
        raise UserError("--tokens: goes with --texts; those of --data are counted")
    gate_init = flags.bindings.make(GateInit)
    on = machine(plan.topology, topology_devices(plan.topology), Rates(**given(vars(flags), Rates)))
    work = {name: value for name, value in given(vars(flags), Workload).items() if name in _WORK}
    Workload(1, 1, **work)  # validated before a large file is read
    if "data" in named:
        workload = _counted(flags, plan.length, work)
    else:
        workload = Workload(flags.texts, flags.tokens or flags.texts * plan.length, **work)
    hidden = (gate_init.solver or ("zero" if plan.online else "newton")) != "zero"

    def launch(costs: list[Any]) -> dict[str, Any]:
        stages = estimate(costs, plan, workload, on, hidden)
        said = held_up(costs, stages, plan, workload, on)
        result = as_json(stages, said, plan, workload, on)
        show_launch(result, plan.topology, console.errors)
        return result

    return launch


def _counted(flags: Flags, length: int, work: dict[str, Any]) -> Workload:
    """Return the workload of --data, its texts counted."""
    from colm_jax import console
    from colm_jax.checkpoints.directory import resolve
    from colm_jax.plan.workload import count_texts
    from colm_jax.text.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(resolve(flags.base, weights=False))
    except UserError as error:
        raise UserError(f"--data {flags.data}: {error}; without it give --texts and --tokens") from None
    with console.bar("counting", bytes_=True) as bar:
        texts, tokens, seconds = count_texts(flags.data, tokenizer, length, bar.to)
    return Workload(texts, tokens, **work, tokenising=seconds)
