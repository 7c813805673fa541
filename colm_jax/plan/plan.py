"""Memory and cost per chip of a run on a TPU topology without hardware, and what to change if it does not fit.

libtpu compiles each program ahead of time, as on the machine; memory is the compiler's own figure. Floating-point
operations are those of the matrix products in the traced program (the compiler counts a loop's body only once), divided
evenly among the chips.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from colm_jax.checkpoints.reader import StoredPart
from colm_jax.errors import UserError
from colm_jax.models.causal import attention_flops
from colm_jax.models.config import ModelConfig
from colm_jax.models.grouped import product_flops
from colm_jax.models.quantize import BITS
from colm_jax.parallel import make_mesh, reshaped
from colm_jax.plan.chips import CHIPS
from colm_jax.plan.programs import Kind, Program, decoding_program, scoring_program, training_program
from colm_jax.settings.plan import PlanSize
from colm_jax.settings.training import Training

_COLLECTIVE = re.compile(
    r"= \(?(\w+)\[([\d,]*)\].*? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_UNITS = {unit: 2.0 ** (10 * i) for i, unit in enumerate("KMGT", start=1)}


@dataclass(frozen=True)
class Plan:
    """The models, sizes and settings to compile."""

    topology: str  # as in v5e:4x4
    base: ModelConfig
    experts: tuple[ModelConfig, ...]
    mesh: tuple[int, int, int] | None = None  # data, fsdp, tensor; None: all chips along fsdp
    expert_mesh: tuple[int, int, int] | None = None  # of the experts, over the same chips; None: as mesh
    packed: tuple[Sequence[StoredPart] | None, ...] = ()  # of each expert that is stored in few bits, its parts
    dtype: str = "bfloat16"
    expert_dtype: str | None = None  # also "int8", "int4"; None: as stored in few bits, else as dtype
    length: int = PlanSize.length  # tokens per text
    rows: int = PlanSize.rows  # batch size of decoding
    online: bool = False  # experts score inside the training step
    training: Training = field(default_factory=Training)

    @property
    def kind(self) -> str:
        """The kind of chip."""
        return self.topology.partition(":")[0]


@dataclass(frozen=True)
class Cost:
    """The cost of a program, per chip."""

    program: str
    resident: dict[str, int]  # bytes of arguments, by kind
    peak: int  # bytes, including arguments
    flops: float
    seconds_at_peak: float  # the flops at the chip's peak rate, a lower bound of a step's time
    # Kind -> count in the program, bytes of the largest result. None if the program's text is not available.
    collectives: dict[str, dict[str, int]] | None
    fits: bool
    reads: dict[str, int]  # bytes of each model's weights and cache
    texts: int  # batch size over all chips
    saved: int  # bytes of a checkpoint over all chips; 0 without one


def compile_plan(
    plan: Plan, progress: Callable[[int, str], None] = lambda done, program: None, only: str | None = None
) -> Iterator[tuple[Cost, list[str]]]:
    """Compile training, scoring of each model, and decoding; yield each cost and what to change if it does not fit.

    Args:
      plan: the plan to compile.
      progress: callback(programs done, name of the next), called before each program.
      only: the name of a single program to compile.

    Raises:
      UserError: no such topology, no libtpu, a mesh that does not use all chips, a batch that the mesh cannot split.
    """
    devices = topology_devices(plan.topology)
    chips = len(devices)
    sizes = plan.mesh or (1, chips, 1)
    if math.prod(sizes) != chips:
        raise UserError(f"mesh {','.join(map(str, sizes))}: {plan.topology} has {chips} chips, not {math.prod(sizes)}")
    plan.training.check_split(sizes[0] * sizes[1])
    plan = replace(plan, mesh=sizes)
    mesh = make_mesh(*sizes, devices=devices)
    expert_mesh = reshaped(mesh, plan.expert_mesh)
    packed = plan.packed or (None,) * len(plan.experts)
    kinds: list[Kind] = [plan.expert_dtype or parts or plan.dtype for parts in packed]
    experts = [(config, kind, expert_mesh) for config, kind in zip(plan.experts, kinds, strict=True)]
    models: list[tuple[str, ModelConfig, Kind, jax.sharding.Mesh]] = [
        ("base", plan.base, plan.dtype, mesh),
        *((f"expert-{m + 1}", *e) for m, e in enumerate(experts)),
    ]
    train = plan.base, experts, plan.training, plan.dtype, plan.length, mesh, plan.online
    makers: list[tuple[str, Callable[[], Program]]] = [("train", partial(training_program, *train))]
    for name, config, dtype, where in models:
        score = partial(scoring_program, f"score {name}", config, dtype, plan.dtype, plan.length, where)
        makers.append((f"score {name}", score))
    decode = partial(decoding_program, plan.base, experts, plan.dtype, plan.length, plan.rows, mesh)
    makers.append(("decode", partial(decode, gate_inputs=plan.training.gate_inputs)))
    makers = [(name, make) for name, make in makers if only in (None, name)]
    for done, (name, make) in enumerate(makers):
        progress(done, name)
        cost = measure(make(), plan.kind, chips)
        yield cost, advice(cost, plan)


def topology_devices(name: str) -> list:
    """Return the devices of a topology, as in v5e:4x4.

    Raises:
      UserError: no libtpu, or no such topology.
    """
    kind = name.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", name.partition(":")[2]):
        raise UserError(
            f"topology {name}: must be KIND:SHAPE, as in v5e:4x4 or v5p:2x2x4; kinds are {', '.join(CHIPS)}"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # otherwise libtpu queries the metadata server of a TPU host
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # planning uses no chip, so processes need no lock
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "4")  # the log would complain about missing hardware
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "4")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"topology {name}: {reason}; `pip install 'colm-jax[plan]'` installs libtpu, which compiles for TPUs"
        ) from None
    return list(found.devices)


def measure(program: Program, kind: str, chips: int) -> Cost:
    """Compile a program for the chips of its mesh; if it does not fit, read its size from the compiler's error."""
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
    """Return the bytes that a program would need, from the compiler's error; None for an unrelated error."""
    whole = re.search(r"Used ([\d.]+)([KMGT]) of", complaint)
    temporaries = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds", complaint)
    if whole is not None:
        return int(float(whole[1]) * _UNITS[whole[2]])
    return None if temporaries is None else arguments + int(float(temporaries[1]) * _UNITS[temporaries[2]])


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Count the collectives in a compiled program's text; one in a loop counts once."""
    count: Counter[str] = Counter()
    largest: dict[str, int] = {}
    for kind, dims, name in _COLLECTIVE.findall(text):
        size = math.prod(int(n) for n in dims.split(",") if n) * _width(kind)
        count[name] += 1
        largest[name] = max(size, largest.get(name, 0))
    return {name: {"count": count[name], "largest_bytes": largest[name]} for name in sorted(count)}


def _width(kind: str) -> int:
    """Return the bytes of an element, from HLO's name of its type, such as bf16."""
    digits = re.search(r"\d+", kind)
    return 1 if digits is None else max(1, int(digits[0]) // 8)


def advice(cost: Cost, plan: Plan) -> list[str]:
    """Return what to change if a program does not fit, the largest saving first."""
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
    if experts and plan.expert_dtype not in BITS and not any(plan.packed):
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
    """Return the floating-point operations of a traced program's matrix products, with every loop iteration counted."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
            continue
        kernel = next((found for of in (product_flops, attention_flops) if (found := of(equation)) is not None), None)
        if kernel is not None:
            total += kernel
            continue
        inner = [matrix_flops(sub) for sub in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "shard_map":
            total += equation.params["mesh"].size * sum(inner)
        elif equation.primitive.name == "cond":
            total += max(inner)
        elif equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        else:
            total += sum(inner)
    return total
