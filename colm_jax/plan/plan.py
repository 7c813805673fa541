"""Memory and cost per chip of a run on a TPU topology that is not there, whether it fits, and what to change.

libtpu compiles each program as it would on the machine; memory is the compiler's own account. Floating-point
operations are those of the matrix products in the traced program (a compiler's count sees a loop's body once), shared
evenly among the chips.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from colm_jax.errors import UserError
from colm_jax.models.config import ModelConfig
from colm_jax.models.quantize import BITS
from colm_jax.parallel import make_mesh, reshaped
from colm_jax.plan.chips import CHIPS
from colm_jax.plan.programs import Program, decoding_program, scoring_program, training_program
from colm_jax.settings.plan import PlanSize
from colm_jax.settings.training import Training

_COLLECTIVE = re.compile(
    r"= \(?(\w+)\[([\d,]*)\].*? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_UNITS = {unit: 2.0 ** (10 * i) for i, unit in enumerate("KMGT", start=1)}


@dataclass(frozen=True)
class Plan:
    """What is to be compiled."""

    topology: str  # as in v5e:4x4
    base: ModelConfig
    experts: tuple[ModelConfig, ...]
    mesh: tuple[int, int, int] | None = None  # data, fsdp, tensor; None: all chips along fsdp
    expert_mesh: tuple[int, int, int] | None = None  # of the experts, over the same chips; None: as mesh
    dtype: str = "bfloat16"
    expert_dtype: str | None = None  # also "int8", "int4"; None: as dtype
    length: int = PlanSize.length  # tokens of a text
    rows: int = PlanSize.rows  # texts decoded at once
    online: bool = False  # experts score inside the training step
    training: Training = field(default_factory=Training)

    @property
    def kind(self) -> str:
        """The kind of chip."""
        return self.topology.partition(":")[0]


@dataclass(frozen=True)
class Cost:
    """What a program needs of each chip."""

    program: str
    resident: dict[str, int]  # bytes of arguments, by kind
    peak: int  # bytes, arguments and all
    flops: float
    seconds_at_peak: float  # the flops at the chip's peak rate: no step is shorter
    # Kind: how many stand in the program, bytes of the largest result. None where the program's text cannot be had.
    collectives: dict[str, dict[str, int]] | None
    fits: bool
    reads: dict[str, int]  # bytes of each model's weights and cache
    texts: int  # that pass at once, on all chips
    saved: int  # bytes of a checkpoint, of all chips together; 0 where there is none


def compile_plan(
    plan: Plan, progress: Callable[[int, str], None] = lambda done, program: None, only: str | None = None
) -> Iterator[tuple[Cost, list[str]]]:
    """Each program's cost, and what to change where it does not fit: training, scoring of each model, decoding.

    Args:
      plan: what to compile.
      progress: told before each program how many are done, and its name.
      only: the name of the one program that is wanted.

    Raises:
      UserError: no such topology, no libtpu, a mesh that is not of all its chips, a batch that the mesh cannot split.
    """
    devices = topology_devices(plan.topology)
    chips = len(devices)
    sizes = plan.mesh or (1, chips, 1)
    if math.prod(sizes) != chips:
        raise UserError(
            f"--mesh {','.join(map(str, sizes))}: {plan.topology} has {chips} chips, not {math.prod(sizes)}"
        )
    plan.training.check_split(sizes[0] * sizes[1])
    plan, kind = replace(plan, mesh=sizes), plan.expert_dtype or plan.dtype
    mesh = make_mesh(*sizes, devices=devices)
    expert_mesh = reshaped(mesh, plan.expert_mesh)
    experts = [(config, kind, expert_mesh) for config in plan.experts]
    models = [("base", plan.base, plan.dtype, mesh), *((f"expert-{m + 1}", *e) for m, e in enumerate(experts))]
    train = plan.base, experts, plan.training, plan.dtype, plan.length, mesh, plan.online
    makers: list[tuple[str, Callable[[], Program]]] = [("train", partial(training_program, *train))]
    for name, config, dtype, where in models:
        score = partial(scoring_program, f"score {name}", config, dtype, plan.dtype, plan.length, where)
        makers.append((f"score {name}", score))
    decode = partial(decoding_program, plan.base, experts, plan.dtype, plan.length, plan.rows, mesh)
    makers.append(("decode", decode))
    makers = [(name, make) for name, make in makers if only in (None, name)]
    for done, (name, make) in enumerate(makers):
        progress(done, name)
        cost = measure(make(), plan.kind, chips)
        yield cost, advice(cost, plan)


def topology_devices(name: str) -> list:
    """The devices of a topology, as in v5e:4x4.

    Raises:
      UserError: no libtpu, or no such topology.
    """
    kind = name.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", name.partition(":")[2]):
        raise UserError(f"--topology {name}: write KIND:SHAPE, as in v5e:4x4 or v5p:2x2x4; kinds: {', '.join(CHIPS)}")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for the machine it is on
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may be planning too: no chip is taken
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "4")  # its log speaks of a machine that is not there
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "4")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--topology {name}: {reason}; `pip install 'colm-jax[plan]'` brings libtpu, which compiles for TPUs"
        ) from None
    return list(found.devices)


def measure(program: Program, kind: str, chips: int) -> Cost:
    """Compiles a program for the chips of its mesh; one that does not fit is measured by the compiler's complaint."""
    chip = CHIPS[kind]
    flops = matrix_flops(program.traced.jaxpr.jaxpr) / chips
    try:
        compiled = program.traced.lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        peak, found = _needed(str(error), sum(program.resident.values())), None
        if peak is None:
            raise
    else:
        peak, found = compiled.memory_analysis().peak_memory_in_bytes, None
        with suppress(jax.errors.JaxRuntimeError):  # jaxlib 0.10 cannot read some instructions of libtpu for v5p
            found = collectives(compiled.as_text())
    seconds, fits = flops / chip.flops, peak <= chip.memory
    facts = program.reads, program.texts, program.saved
    return Cost(program.name, program.resident, peak, flops, seconds, found, fits, *facts)


def _needed(complaint: str, arguments: int) -> int | None:
    """Bytes that a program would have needed, from the compiler's words; None where they are about something else."""
    whole = re.search(r"Used ([\d.]+)([KMGT]) of", complaint)
    temporaries = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds", complaint)
    if whole is not None:
        return int(float(whole[1]) * _UNITS[whole[2]])
    return None if temporaries is None else arguments + int(float(temporaries[1]) * _UNITS[temporaries[2]])


def collectives(text: str) -> dict[str, dict[str, int]]:
    """The collectives that stand in a compiled program's text; one in a loop counts once."""
    count: Counter[str] = Counter()
    largest: dict[str, int] = {}
    for kind, dims, name in _COLLECTIVE.findall(text):
        size = math.prod(int(n) for n in dims.split(",") if n) * _width(kind)
        count[name] += 1
        largest[name] = max(size, largest.get(name, 0))
    return {name: {"count": count[name], "largest_bytes": largest[name]} for name in sorted(count)}


def _width(kind: str) -> int:
    """Bytes of an element, from HLO's name of its type, as in bf16."""
    digits = re.search(r"\d+", kind)
    return 1 if digits is None else max(1, int(digits[0]) // 8)


def advice(cost: Cost, plan: Plan) -> list[str]:
    """What to change where a program does not fit, what weighs most first."""
    if cost.fits:
        return []
    assert plan.mesh is not None  # `costs` has set it
    data, fsdp, tensor = plan.mesh
    chips, settings, train = data * fsdp * tensor, plan.training, cost.program == "train"
    held, memory = cost.resident, CHIPS[plan.kind].memory
    weights = held["parameters"] + held.get("optimizer", 0)
    experts, caches = held.get("experts", 0), held.get("caches", 0)
    rest = cost.peak - sum(held.values())
    ways: list[tuple[int, str]] = []
    if data > 1:
        ways.append((weights + experts, f"--mesh 1,{data * fsdp},{tensor} (weights split over all chips)"))
    if weights + experts > memory / 2:
        ways.append((weights + experts, f"a topology of more than {chips} chips, or of larger ones"))
    if train and settings.trainable == "all":
        ways.append((weights, "--trainable lora"))
    if experts and plan.expert_dtype not in BITS:
        ways.append((experts, "--expert_dtype int8"))
    if train and experts:
        ways.append((experts, "--expert_scores cached"))
    if train and settings.remat != "full":
        ways.append((rest, "--gin.Training.remat=\"'full'\""))
    if train and settings.batch_size > settings.accumulate * data * fsdp:
        ways.append((rest, f"--gin.Training.accumulate={2 * settings.accumulate}"))
    if not train and tensor < chips:
        ways.append((rest + caches, f"--mesh with a larger tensor axis than {tensor}"))
    if cost.program == "decode":
        ways.append((caches, "--rows with fewer texts at once"))
    ways.append((min(rest, caches or rest), "--length with shorter texts"))
    return [text for _, text in sorted(ways, key=lambda way: -way[0])]


def matrix_flops(jaxpr: Any) -> float:
    """Floating-point operations of a traced program's matrix products, loops counted as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
            continue
        inner = [matrix_flops(sub) for sub in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner)
        elif equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        else:
            total += sum(inner)
    return total
