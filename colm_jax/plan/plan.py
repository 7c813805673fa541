"""Memory and cost per chip of a run on a TPU topology that is not there, whether it fits, and what to change.

libtpu compiles each program as it would on the machine; memory is the compiler's own account. Floating-point
operations are those of the matrix products in the traced program (a compiler's count sees a loop's body once), shared
evenly among the chips.
"""

import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from colm_jax.errors import UserError
from colm_jax.plan.programs import Program

# Memory (bytes) and peak bfloat16 rate (flops/s) of a chip. Source: cloud.google.com/tpu/docs, pages v4 to v6e.
CHIPS = {
    "v4": (32 * 2**30, 275e12),
    "v5e": (16 * 2**30, 197e12),
    "v5p": (95 * 2**30, 459e12),
    "v6e": (32 * 2**30, 918e12),
}
_COLLECTIVE = re.compile(
    r"= \(?(\w+)\[([\d,]*)\].*? (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_NEEDED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_UNITS = {unit: 2.0 ** (10 * i) for i, unit in enumerate("KMGT", start=1)}


@dataclass(frozen=True)
class Cost:
    """What a program needs of each chip."""

    program: str
    resident: dict[str, int]  # bytes of arguments, by kind
    peak: int  # bytes, arguments and all
    flops: float
    seconds_at_peak: float  # the flops at the chip's peak rate: no step is shorter
    collectives: dict[str, dict[str, int]]  # kind: how many stand in the program, bytes of the largest result
    fits: bool


def topology_devices(name: str) -> tuple[str, list]:
    """The kind of chip, and the devices of a topology as in v5e:4x4.

    Raises:
      UserError: no libtpu, or no such topology.
    """
    kind = name.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", name.partition(":")[2]):
        raise UserError(f"--topology {name}: write KIND:SHAPE, as in v5e:4x4 or v5p:2x2x4; kinds: {', '.join(CHIPS)}")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for the machine it is on
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--topology {name}: {reason}; `pip install 'colm-jax[plan]'` brings libtpu, which compiles for TPUs"
        ) from None
    return kind, list(found.devices)


def measure(program: Program, kind: str, chips: int) -> Cost:
    """Compiles a program for the chips of its mesh; one that does not fit is measured by the compiler's complaint."""
    memory, rate = CHIPS[kind]
    flops = matrix_flops(program.traced.jaxpr.jaxpr) / chips
    cost = dict(program=program.name, resident=program.resident, flops=flops, seconds_at_peak=flops / rate)
    try:
        compiled = program.traced.lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        found = _NEEDED.search(str(error))
        if found is None:
            raise
        peak = int(float(found[1]) * _UNITS[found[2]])
        return Cost(**cost, peak=peak, collectives={}, fits=False)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    return Cost(**cost, peak=peak, collectives=collectives(compiled.as_text()), fits=peak <= memory)


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


def advice(cost: Cost, kind: str, facts: dict[str, Any]) -> list[str]:
    """What to change, most promising first, where a program does not fit."""
    memory = CHIPS[kind][0]
    rest = cost.peak - sum(cost.resident.values())
    found: list[tuple[int, str]] = []

    def say(size: int, condition: bool, text: str) -> None:
        if condition:
            found.append((size, text))

    state = cost.resident.get("parameters", 0) + cost.resident.get("optimizer", 0)
    say(state, facts["fsdp"] * facts["tensor"] < facts["chips"], "split the weights further: --mesh with more fsdp")
    say(state, cost.program == "train" and facts["trainable"] == "all", "--trainable lora (or gate)")
    say(state, state > memory, "a topology of more chips")
    experts = cost.resident.get("experts", 0)
    say(experts, experts > 0 and facts["expert_dtype"] not in ("int8", "int4"), "--expert_dtype int8 (or int4)")
    say(experts, cost.program == "train" and experts > 0, "--expert_scores cached: score the experts beforehand")
    train = cost.program == "train"
    say(rest, train and facts["remat"] != "full", "--gin.Training.remat=\"'full'\"")
    parts = facts["batch_size"] // (facts["accumulate"] * facts["data"] * facts["fsdp"])
    say(rest, train and parts > 1, f"--gin.Training.accumulate={2 * facts['accumulate']}")
    say(rest, not train and cost.program == "decode", "--rows: fewer texts at once")
    say(rest, facts["tensor"] == 1, "--mesh with more tensor: activations and caches are split too")
    say(rest, True, "--length: shorter texts")
    found.sort(key=lambda item: -item[0])
    return [text for _, text in found]


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
