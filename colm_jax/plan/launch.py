"""`colm plan --launch`: estimated hours and price of a run, and its bottlenecks, without hardware.

The duration of a program is that of its slowest concurrent part: matrix products, at a given share of the chip's peak
rate; reading weights and caches from the chip's memory; communication between chips; and, during a training step,
loading the next batch and writing the last checkpoint. Products come from the compiled programs, bytes from their
shapes and shardings. Not included: compilation, the gate's fit, calibration, evaluation, and the latency of
collectives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.models.config import ModelConfig
from colm_jax.models.prefill import PREFILL_TOKENS
from colm_jax.plan.chips import CHIPS, Chip
from colm_jax.plan.plan import Cost, Plan
from colm_jax.scoring.passes import SHARD_TEXTS
from colm_jax.settings.plan import Rates, Workload

_GB = 1e9
_SHORT = 0.1  # hours; no warning about shorter tokenisation
_FLOAT32 = 4  # bytes of a trained weight, and of its gradient
Sizes = tuple[int, int, int]  # mesh sizes: data, fsdp, tensor


@dataclass(frozen=True)
class Estimate:
    """The estimate of a stage, which runs one program repeatedly."""

    stage: str
    runs: int
    parts: dict[str, float]  # seconds of one run by part; parts are concurrent

    @property
    def bound(self) -> str:
        """The slowest part."""
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def hours(self) -> float:
        """The hours of all runs."""
        return self.runs * self.parts[self.bound] / 3600


@dataclass(frozen=True)
class Machine:
    """The planned slice and its assumed rates."""

    chip: Chip
    chips: int
    hosts: int
    rates: Rates

    def product(self, flops: float) -> float:
        """Return the seconds of matrix products, from the operations of one chip."""
        return flops / (self.chip.flops * self.rates.efficiency)

    def reading(self, size: float) -> float:
        """Return the seconds to read bytes from a chip's memory."""
        return size / self.chip.bandwidth

    def sending(self, size: float) -> float:
        """Return the seconds to send bytes from a chip to others."""
        return size / self.chip.interconnect

    def disk(self, size: float) -> float:
        """Return the seconds to transfer bytes to or from the disk, which the hosts share."""
        return size / (self.rates.disk_bandwidth * _GB)


def gathered(held: float, mesh: Sizes) -> float:
    """Return the bytes that a chip receives when weights sharded along fsdp (`held` bytes per chip) are gathered."""
    return held * (mesh[1] - 1)


def summed(config: ModelConfig, tokens: float, width: int, mesh: Sizes) -> float:
    """Return the bytes that a chip sends in one pass for the two all-reduces per layer along tensor.

    Args:
      config: the model.
      tokens: tokens per group of chips.
      width: bytes of an activation.
      mesh: the model's mesh.
    """
    return 2 * config.depth * 2 * (mesh[2] - 1) / mesh[2] * tokens * config.width * width


def scoring_batches(work: Workload, rows: int, length: int) -> int:
    """Return the number of scoring batches of `rows` rows of `length` tokens, which are assumed to be full.

    Each shard of texts has batches of its own.
    """
    return max(math.ceil(work.tokens / (rows * length)), math.ceil(work.texts / SHARD_TEXTS))


def training_steps(work: Workload, plan: Plan) -> int:
    """Return the number of training steps."""
    return math.ceil(plan.training.epochs * work.texts / plan.training.batch_size)


def training_rows(work: Workload, plan: Plan, ways: int) -> int:
    """Return the rows of a training step, which `ways` groups of devices share; packed ones are assumed to be full."""
    settings = plan.training
    if not settings.packing:
        return settings.batch_size
    full = math.ceil(settings.batch_size * work.tokens / (work.texts * plan.length))
    return settings.split_rows(min(full, settings.batch_size), ways)


def expert_passes(rate: float, rows: int) -> float:
    """Return an expert's passes per decode step of `rows` sequences at deferral rate `rate`, if no call is delayed."""
    return 1 - (1 - rate) ** rows


def score_estimate(cost: Cost, config: ModelConfig, plan: Plan, work: Workload, on: Machine, mesh: Sizes) -> Estimate:
    """Estimate the scoring of all texts by one model."""
    (held,) = cost.reads.values()
    groups, width = mesh[0] * mesh[1], jnp.dtype(DTYPES[plan.dtype]).itemsize
    own = cost.texts / groups * plan.length
    parts = {
        "products": on.product(cost.flops),
        "memory": on.reading(held * mesh[1]),
        "collectives": on.sending(gathered(held, mesh) + summed(config, own, width, mesh)),
    }
    return Estimate(cost.program, scoring_batches(work, cost.texts, plan.length), parts)


def train_estimate(cost: Cost, plan: Plan, work: Workload, on: Machine, mesh: Sizes, expert_mesh: Sizes) -> Estimate:
    """Estimate training; each run is one step. The compiled step has a row for each text; packed ones have fewer."""
    settings, width = plan.training, jnp.dtype(DTYPES[plan.dtype]).itemsize
    groups = [sizes[0] * sizes[1] for sizes in ((mesh, expert_mesh) if plan.online else (mesh,))]
    rows = training_rows(work, plan, math.lcm(*groups))
    pieces = settings.parts(rows)
    held = cost.reads["base"] * (width / _FLOAT32 if settings.trainable == "all" else 1)  # in the type of computation
    gradient = cost.resident["optimizer"] / 2  # the size of one of two moments
    own = rows / (mesh[0] * mesh[1]) / pieces * plan.length  # tokens of a microbatch
    passes = 3 if settings.remat == "full" else 2  # forward, backward, and forward again
    sent = 2 * gathered(held, mesh) + gathered(gradient, mesh) + 2 * (mesh[0] - 1) / mesh[0] * gradient
    sent += passes * summed(plan.base, own, width, mesh)
    read = 2 * held * mesh[1]
    for m, config in enumerate(plan.experts):
        expert = cost.reads.get(f"expert-{m + 1}", 0)
        if expert:
            tokens = rows / (expert_mesh[0] * expert_mesh[1]) / pieces * plan.length
            sent += gathered(expert, expert_mesh) + summed(config, tokens, width, expert_mesh)
            read += expert * expert_mesh[1]
    state = cost.resident["parameters"] + cost.resident["optimizer"]
    steps = training_steps(work, plan)
    saves = steps // settings.checkpoint_every
    parts = {
        "products": on.product(cost.flops * rows / settings.batch_size),
        "memory": on.reading(pieces * read + 2 * state),
        "collectives": on.sending(pieces * sent),
        "input": rows * plan.length / on.hosts / on.rates.input_rate,
        "checkpoints": on.disk(cost.saved) * saves / steps,
    }
    return Estimate("train", steps, parts)


def generate_estimates(
    decode: Cost, flops: Mapping[str, float], plan: Plan, work: Workload, on: Machine
) -> list[Estimate]:
    """Estimate prefill and decoding, with answers of the maximum length.

    Args:
      decode: cost of the decoding program.
      flops: each model's operations per token and chip, from its scoring program.
      plan: the compiled plan.
      work: the workload.
      on: the machine.
    """
    experts = [name for name in decode.reads if name != "base"]
    rate = work.deferral_rate / max(1, len(experts))
    passes = {"base": 1.0} | {name: expert_passes(rate, plan.rows) for name in experts}
    products = memory = 0.0
    for name, count in passes.items():
        # An expert call processes all tokens not in its cache, so every called model processes every token once.
        products += on.product(flops[name] * plan.rows) if count else 0.0
        memory += count * on.reading(decode.reads[name])
    steps = math.ceil(work.prompts / plan.rows) * work.new_tokens
    written = Estimate("generate", steps, {"products": products, "memory": memory})
    readers = [name for name, count in passes.items() if count]
    parts = {
        "products": sum(on.product(flops[name] * PREFILL_TOKENS) for name in readers),
        "memory": sum(on.reading(decode.reads[name]) for name in readers),
    }
    read = Estimate("read prompts", math.ceil(work.prompts * work.prompt_tokens / PREFILL_TOKENS), parts)
    return [read, written]


def estimate(costs: Sequence[Cost], plan: Plan, work: Workload, on: Machine, hidden: bool) -> list[Estimate]:
    """Return the estimates of all stages, in the order of a run.

    Args:
      costs: costs of all programs of the plan.
      plan: the compiled plan.
      work: the workload.
      on: the machine.
      hidden: whether the base's hidden states are stored, for the gate's fit.
    """
    mesh: Sizes = plan.mesh or (1, on.chips, 1)
    expert_mesh = plan.expert_mesh or mesh
    by_name = {cost.program: cost for cost in costs}
    names = ["base", *(f"expert-{m + 1}" for m in range(len(plan.experts)))]
    places = [mesh, *([expert_mesh] * len(plan.experts))]
    scored = {
        name: score_estimate(by_name[f"score {name}"], config, plan, work, on, where)
        for name, config, where in zip(names, (plan.base, *plan.experts), places)
    }
    found = [] if work.tokenising is None else [Estimate("tokens", 1, {"input": work.tokenising})]
    found += [stage for name, stage in scored.items() if name == "base" or not plan.online]
    if hidden:
        base = scored["base"]
        disk = on.disk(hidden_bytes(plan, work)) / base.runs
        found.append(Estimate("hidden states", base.runs, {**base.parts, "disk": disk}))
    found.append(train_estimate(by_name["train"], plan, work, on, mesh, expert_mesh))
    if work.prompts:
        flops = {
            name: by_name[f"score {name}"].flops / (by_name[f"score {name}"].texts * plan.length) for name in names
        }
        found += generate_estimates(by_name["decode"], flops, plan, work, on)
    return found


def hidden_bytes(plan: Plan, work: Workload) -> int:
    """Return the size of the base's hidden states on disk, if every token counts in the loss."""
    return work.tokens * plan.base.width * _FLOAT32


def held_up(costs: Sequence[Cost], stages: Sequence[Estimate], plan: Plan, work: Workload, on: Machine) -> list[str]:
    """Return the bottlenecks of the run, each with its number."""
    found = [
        f"{cost.program}: does not fit: {cost.peak / 2**30:.1f} GiB of {on.chip.memory / 2**30:.0f} per chip"
        for cost in costs
        if not cost.fits
    ]
    every = plan.training.checkpoint_every
    for stage in stages:
        parts, bound = stage.parts, stage.bound
        slow, work_of = parts[bound], max(parts.get("products", 0.0), parts.get("memory", 0.0))
        against = f"{_seconds(slow)} per run, against {_seconds(work_of)} of the chips' own work"
        if bound == "collectives":
            found.append(f"{stage.stage}: collectives would dominate: {against}; try another --mesh or larger batches")
        elif bound == "input" and stage.stage == "train":
            found.append(f"train: input would dominate: {against}, at {on.rates.input_rate:.3g} tokens/s per host")
        elif bound == "checkpoints":
            saved = next(cost.saved for cost in costs if cost.program == "train")
            enough = math.ceil(on.disk(saved) / max(parts[part] for part in parts if part != bound))
            found.append(
                f"train: checkpoints would dominate: {saved / _GB:.3g} GB in {_seconds(on.disk(saved))} at "
                f"{on.rates.disk_bandwidth:.3g} GB/s, {every} steps take {_seconds(work_of * every)}; "
                f"--gin.Training.checkpoint_every={enough} or a faster disk"
            )
        elif bound == "disk":
            found.append(
                f"hidden states: writing them would dominate: {hidden_bytes(plan, work) / _GB:.3g} GB at "
                f"{on.rates.disk_bandwidth:.3g} GB/s; --gin.GateInit.solver=\"'zero'\" stores none"
            )
    whole = sum(stage.hours for stage in stages)
    for stage in stages:
        if stage.stage == "tokens" and stage.hours > max(whole / 10, _SHORT):
            found.append(
                f"tokens: one host tokenises for {stage.hours:.2f} hours while the chips wait; tokenise in advance, by "
                "colm run --until tokens on a machine without accelerators"
            )
    return found


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def as_json(stages: Sequence[Estimate], warnings: Sequence[str], plan: Plan, work: Workload, on: Machine) -> dict:
    """Return the estimate of a launch as JSON for `colm plan`."""
    hours, price = sum(stage.hours for stage in stages), on.rates.price_per_chip_hour
    shown = [
        {
            "stage": stage.stage,
            "runs": stage.runs,
            "seconds_of_a_run": stage.parts,
            "slowest": stage.bound,
            "hours": stage.hours,
        }
        for stage in stages
    ]
    return {
        "chips": on.chips,
        "hosts": on.hosts,
        "assumed": {**on.rates.__dict__, "chip": on.chip.__dict__},
        "workload": {**work.__dict__, "epochs": plan.training.epochs, "batch_size": plan.training.batch_size},
        "stages": shown,
        "hours": hours,
        "chip_hours": hours * on.chips,
        "price": None if price is None else hours * on.chips * price,
        "warnings": list(warnings),
    }


def machine(topology: str, devices: Sequence, rates: Rates) -> Machine:
    """Return the machine of a topology's devices."""
    hosts = len({device.process_index for device in devices})
    return Machine(CHIPS[topology.partition(":")[0]], len(devices), hosts, rates)
