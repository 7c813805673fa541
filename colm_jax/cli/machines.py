"""The commands about models and machines in place of a run: inspect, plan, bench. One function each, by its name."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from colm_jax import console
from colm_jax.checkpoints.describe import describe, describe_pair
from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import read_config
from colm_jax.cli.flags import Flags, mesh_sizes
from colm_jax.cli.gin_edge import make
from colm_jax.errors import UserError
from colm_jax.models.lora import Lora
from colm_jax.parallel.mesh import MESH_AXES
from colm_jax.report.inspection import show_models
from colm_jax.text.tokenizer import load_tokenizer
from colm_jax.training.config import Training
from colm_jax.training.gate_fit import GateInit


def inspect(flags: Flags) -> dict[str, Any] | None:
    """Show the facts of models, and of several whether they can pair; with --json, return them."""
    mesh = jax.sharding.AbstractMesh(mesh_sizes(flags) or (1, 1, 1), MESH_AXES)
    facts = [describe(model, mesh) for model in flags.model]
    found = facts[0] if len(facts) == 1 else {"pair": describe_pair(flags.model), "models": facts}
    if flags.json:
        return found
    show_models(found, console.output)
    return None


def plan(flags: Flags) -> dict[str, Any]:
    """Memory and work of each chip of a topology; with --launch also hours and price."""
    from colm_jax.plan.chips import CHIPS
    from colm_jax.plan.plan import Plan, compile_plan
    from colm_jax.plan.table import show_costs

    training = make(Training, objective=flags.objective, trainable=flags.trainable, lora=make(Lora))
    if training.trainable == "gate":
        raise UserError("--trainable gate: is fitted on one device from hidden states; plan takes all or lora")
    if min(flags.length, flags.rows) < 1:
        raise UserError(f"--length {flags.length} --rows {flags.rows}: both are at least 1")
    models = [read_config(resolve(model, weights=False)) for model in (flags.base, *flags.expert)]
    wanted = Plan(
        topology=flags.topology,
        base=models[0],
        experts=tuple(models[1:]),
        mesh=mesh_sizes(flags),
        expert_mesh=mesh_sizes(flags, "expert_mesh"),
        dtype=flags.dtype,
        expert_dtype=flags.expert_dtype,
        length=flags.length,
        rows=flags.rows,
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


_WORK = ("prompts", "prompt_tokens", "new_tokens", "deferral_rate")
_RATES = ("efficiency", "disk_bandwidth", "input_rate", "price_per_chip_hour")


def _launching(flags: Flags, plan: Any) -> Callable[[list[Any]], dict[str, Any]] | None:
    """What turns the plan's costs into hours and price, its flags checked and the texts counted; None if not wanted."""
    from colm_jax.plan.launch import Rates, as_json, estimate, held_up, machine
    from colm_jax.plan.plan import topology_devices
    from colm_jax.plan.table import show_launch
    from colm_jax.plan.workload import Workload, count_texts

    given = {name: getattr(flags, name) for name in ("data", "texts", "tokens", *_WORK, *_RATES)}
    given = {name: value for name, value in given.items() if value is not None}
    if not flags.launch:
        if given:
            raise UserError(f"--{next(iter(given))}: is for --launch, which is missing")
        return None
    if ("data" in given) == ("texts" in given):
        raise UserError("--launch: needs --data FILE, or --texts N, but not both")
    if "data" in given and "tokens" in given:
        raise UserError("--tokens: goes with --texts; those of --data are counted")
    gate_init = make(GateInit)
    rates = {name: given[name] for name in _RATES if name in given}
    if "disk_bandwidth" in rates:
        rates["disk_bandwidth"] *= 1e9
    on = machine(plan.topology, topology_devices(plan.topology), Rates(**rates))
    work = {name: given[name] for name in _WORK if name in given}
    Workload(1, 1, **work)  # checked before a large file is read
    if "data" in given:
        try:
            tokenizer = load_tokenizer(resolve(flags.base, weights=False))
        except UserError as error:
            raise UserError(f"--data {flags.data}: {error}; without it give --texts and --tokens") from None
        with console.bar("counting", bytes_=True) as bar:
            texts, tokens, seconds = count_texts(flags.data, tokenizer, plan.length, bar.to)
        workload = Workload(texts, tokens, **work, tokenising=seconds)
    else:
        workload = Workload(flags.texts, given.get("tokens", flags.texts * plan.length), **work)
    hidden = (gate_init.solver or ("zero" if plan.online else "newton")) != "zero"

    def launch(costs: list[Any]) -> dict[str, Any]:
        stages = estimate(costs, plan, workload, on, hidden)
        said = held_up(costs, stages, plan, workload, on)
        result = as_json(stages, said, plan, workload, on)
        show_launch(result, plan.topology, console.errors)
        return result

    return launch


def bench(flags: Flags) -> dict[str, Any]:
    """Figures of a benchmark."""
    from colm_jax.bench.timing import show_figures

    measure, count = (_bench_train if flags.bench == "train" else _bench_decode)(flags)
    with console.bar("measuring", count) as bar:
        begun = itertools.count()
        figures, details = measure(lambda name: bar.to(next(begun), note=name))
    show_figures(figures, details["left_out"], console.errors)
    return {"figures": [figure.as_json() for figure in figures], **details}


def _bench_train(flags: Flags):
    """What measures, given whom to tell; and how often it tells."""
    from colm_jax.bench.config import TrainBench
    from colm_jax.bench.train import bench_train, pieces

    given = {name: getattr(flags, name) for name in ("batch_size", "length", "dtype", "repeats")}
    settings = make(TrainBench, **given)
    return partial(bench_train, settings), pieces(settings)


def _bench_decode(flags: Flags):
    from colm_jax.bench.config import DecodeBench
    from colm_jax.bench.decode import bench_decode, pieces

    names = ("batch_size", "prompt_tokens", "new_tokens", "rates", "dtype", "repeats")
    settings = make(DecodeBench, **{name: getattr(flags, name) for name in names})
    return partial(bench_decode, settings), pieces(settings)
