"""`colm plan --launch`: hours and price of a run on chips that are not there, and what would hold it up.

A program takes as long as the slowest of what it does at once: matrix products, at a stated share of the chip's peak
rate; weights and caches out of the chip's memory; what chips send each other; beside a training step, the next batch
and the last checkpoint. Products come from the compiled programs, bytes from their shapes and shardings. Not in it:
compiling, the gate's fit, calibration, evaluation, and the latency of collectives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.decoding.engine import PREFILL_TOKENS
from colm_jax.models.config import ModelConfig
from colm_jax.plan.chips import CHIPS, Chip
from colm_jax.plan.plan import Cost, Plan
from colm_jax.scoring.scorer import SHARD_TEXTS
from colm_jax.settings.plan import Rates, Workload

_GB = 1e9
_WORTH_SAYING = 0.1  # hours
_FLOAT32 = 4  # bytes of a weight that is trained, and of its gradient
Sizes = tuple[int, int, int]  # of a mesh: data, fsdp, tensor


@dataclass(frozen=True)
class Estimate:
    """A stage: a program that runs again and again."""

    stage: str
    runs: int
    parts: dict[str, float]  # seconds of one run, by what they go to; they go on side by side

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def hours(self) -> float:
        """Of all runs."""
        return self.runs * self.parts[self.bound] / 3600


@dataclass(frozen=True)
class Machine:
    """The slice that is planned for, and what is assumed of it."""

    chip: Chip
    chips: int
    hosts: int
    rates: Rates

    def product(self, flops: float) -> float:
        """Seconds that matrix products take, from a chip's share of them."""
        return flops / (self.chip.flops * self.rates.efficiency)

    def reading(self, size: float) -> float:
        """Seconds for bytes out of a chip's memory."""
        return size / self.chip.bandwidth

    def sending(self, size: float) -> float:
        """Seconds for bytes that a chip sends to others."""
        return size / self.chip.interconnect

    def disk(self, size: float) -> float:
        """Seconds for bytes to or from the disk, which the hosts share."""
        return size / (self.rates.disk_bandwidth * _GB)


def gathered(held: float, mesh: Sizes) -> float:
    """Bytes that a chip gets where weights split along fsdp, of which it holds `held`, are gathered layer by layer."""
    return held * (mesh[1] - 1)


def summed(config: ModelConfig, tokens: float, width: int, mesh: Sizes) -> float:
    """Bytes that a chip sends in one pass where two sums a layer run along tensor.

    Args:
      config: the model.
      tokens: of its group of chips.
      width: bytes of an activation.
      mesh: where it lies.
    """
    return 2 * config.depth * 2 * (mesh[2] - 1) / mesh[2] * tokens * config.width * width


def scoring_batches(texts: int, at_once: int) -> int:
    """Batches in which texts are scored: a shard's texts by themselves, the last batch of a shard filled up."""
    shards, rest = divmod(texts, SHARD_TEXTS)
    return shards * math.ceil(SHARD_TEXTS / at_once) + math.ceil(rest / at_once)


def training_steps(work: Workload, plan: Plan) -> int:
    """Steps of the run; of packed texts, as if no room were left in a row."""
    settings = plan.training
    if settings.packing:
        return math.ceil(settings.epochs * math.ceil(work.tokens / plan.length) / settings.batch_size)
    return math.ceil(settings.epochs * work.texts / settings.batch_size)


def expert_passes(rate: float, rows: int) -> float:
    """Passes of an expert to a step of `rows` texts, each of which calls it at `rate`, if none waits for another."""
    return 1 - (1 - rate) ** rows


def score_estimate(cost: Cost, config: ModelConfig, plan: Plan, work: Workload, on: Machine, mesh: Sizes) -> Estimate:
    """Scoring of all texts by one model."""
    (held,) = cost.reads.values()
    groups, width = mesh[0] * mesh[1], jnp.dtype(DTYPES[plan.dtype]).itemsize
    own = cost.texts / groups * plan.length
    parts = {
        "products": on.product(cost.flops),
        "memory": on.reading(held * mesh[1]),
        "collectives": on.sending(gathered(held, mesh) + summed(config, own, width, mesh)),
    }
    return Estimate(cost.program, scoring_batches(work.texts, cost.texts), parts)


def train_estimate(cost: Cost, plan: Plan, work: Workload, on: Machine, mesh: Sizes, expert_mesh: Sizes) -> Estimate:
    """Training, of which a run is a step."""
    settings, width = plan.training, jnp.dtype(DTYPES[plan.dtype]).itemsize
    held = cost.reads["base"] * (width / _FLOAT32 if settings.trainable == "all" else 1)  # as layers compute with it
    gradient = cost.resident["optimizer"] / 2  # one of two moments
    own = settings.batch_size / (mesh[0] * mesh[1]) / settings.accumulate * plan.length  # tokens of a part
    passes = 3 if settings.remat == "full" else 2  # forward, backward, and forward again
    sent = 2 * gathered(held, mesh) + gathered(gradient, mesh) + 2 * (mesh[0] - 1) / mesh[0] * gradient
    sent += passes * summed(plan.base, own, width, mesh)
    read = 2 * held * mesh[1]
    for m, config in enumerate(plan.experts):
        expert = cost.reads.get(f"expert-{m + 1}", 0)
        if expert:
            tokens = settings.batch_size / (expert_mesh[0] * expert_mesh[1]) / settings.accumulate * plan.length
            sent += gathered(expert, expert_mesh) + summed(config, tokens, width, expert_mesh)
            read += expert * expert_mesh[1]
    state = cost.resident["parameters"] + cost.resident["optimizer"]
    steps = training_steps(work, plan)
    saves = steps // settings.checkpoint_every
    parts = {
        "products": on.product(cost.flops),
        "memory": on.reading(settings.accumulate * read + 2 * state),
        "collectives": on.sending(settings.accumulate * sent),
        "input": settings.batch_size * plan.length / on.hosts / on.rates.input_rate,
        "checkpoints": on.disk(cost.saved) * saves / steps,
    }
    return Estimate("train", steps, parts)


def generate_estimates(
    decode: Cost, flops: Mapping[str, float], plan: Plan, work: Workload, on: Machine
) -> list[Estimate]:
    """Reading the prompts and writing the answers, all of them as long as they may be.

    Args:
      decode: cost of the decoding program.
      flops: of each model, a chip's share of a token's, from its scoring program.
      plan: what was compiled.
      work: what is to be generated.
      on: the machine.
    """
    experts = [name for name in decode.reads if name != "base"]
    rate = work.deferral_rate / max(1, len(experts))
    passes = {"base": 1.0} | {name: expert_passes(rate, plan.rows) for name in experts}
    products = memory = 0.0
    for name, count in passes.items():
        # Whoever is called reads all that it has not seen, so in the end every model reads every token.
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
    """Every stage's estimate, in the order in which a run does them.

    Args:
      costs: of all programs of the plan.
      plan: what was compiled, its mesh included.
      work: how much there is to do.
      on: the machine.
      hidden: whether the base's hidden states are kept, for the gate to be fitted to.
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
    """What the base's hidden states take on disk, if every token counts in the loss."""
    return work.tokens * plan.base.width * _FLOAT32


def held_up(costs: Sequence[Cost], stages: Sequence[Estimate], plan: Plan, work: Workload, on: Machine) -> list[str]:
    """What would hold the run up, each with its number."""
    found = [
        f"{cost.program}: does not fit: {cost.peak / 2**30:.1f} GiB of {on.chip.memory / 2**30:.0f} a chip"
        for cost in costs
        if not cost.fits
    ]
    every = plan.training.checkpoint_every
    for stage in stages:
        parts, bound = stage.parts, stage.bound
        slow, work_of = parts[bound], max(parts.get("products", 0.0), parts.get("memory", 0.0))
        against = f"{_seconds(slow)} each time against {_seconds(work_of)} of the chips' own work"
        if bound == "collectives":
            found.append(f"{stage.stage}: collectives would dominate: {against}; try another --mesh or larger batches")
        elif bound == "input" and stage.stage == "train":
            found.append(f"train: input would dominate: {against}, at {on.rates.input_rate:.3g} tokens/s a host")
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
                f"{on.rates.disk_bandwidth:.3g} GB/s; --gin.GateInit.solver=\"'zero'\" keeps none"
            )
    whole = sum(stage.hours for stage in stages)
    for stage in stages:
        if stage.stage == "tokens" and stage.hours > max(whole / 10, _WORTH_SAYING):
            found.append(
                f"tokens: one host tokenises for {stage.hours:.2f} hours while the chips wait; make them before, by "
                "colm run --until tokens on a machine without"
            )
    return found


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def as_json(stages: Sequence[Estimate], said: Sequence[str], plan: Plan, work: Workload, on: Machine) -> dict:
    """The launch, as `colm plan` prints it."""
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
        "warnings": list(said),
    }


def machine(topology: str, devices: Sequence, rates: Rates) -> Machine:
    """The slice of these devices."""
    hosts = len({device.process_index for device in devices})
    return Machine(CHIPS[topology.partition(":")[0]], len(devices), hosts, rates)
