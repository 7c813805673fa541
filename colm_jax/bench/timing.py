"""Timing on a machine with other load, by interleaved measurements; the table of figures."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from colm_jax.checkpoints.huggingface import DTYPES
from colm_jax.models.layers import precision_of

Announce = Callable[[str], None]  # callback(name), called before each piece of work


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    value: float
    unit: str = ""  # "" for ratios
    at_most: float | None = None  # the target, if any
    at_least: float | None = None
    bound: float | None = None  # what this machine allows at best, in the same unit

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    def as_json(self) -> dict[str, Any]:
        """Return the fields, and whether the target is met."""
        return {**self.__dict__, "met": self.met}


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(has_torch: bool) -> dict[str, Any]:
    """Return the device and the package versions of a measurement."""
    device = jax.devices()[0]
    packages = ["jax", "jaxlib", "flax", "optax", *(["torch", "transformers"] if has_torch else [])]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "cores": cores(),
        "packages": {name: version(name) for name in packages},
    }


def take_turns(works: Mapping[str, Callable[[], Any]], rounds: int, announce: Announce) -> dict[str, list[float]]:
    """Return the seconds of each piece of work in each round, after an uncounted round for compilation.

    Each round has its own random order, so that no piece of work always follows the same one.
    """
    names, seconds, rng = list(works), {name: list[float]() for name in works}, np.random.default_rng(0)
    for turn in range(rounds + 1):
        for name in rng.permutation(names).tolist():
            announce(name)
            start = time.perf_counter()
            jax.block_until_ready(works[name]())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the median over rounds of `one` / `other`, so that load that slows a whole round cancels."""
    return median(a / b for a, b in zip(one, other, strict=True))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the memory of a running program by the compiler's statistics: arguments, results, temporaries."""
    memory = compiled.memory_analysis()
    assert memory is not None  # available on CPU, GPU and TPU
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes


def matrix_products(dtype: str) -> tuple[Callable[[], jax.Array], float]:
    """Return a chain of large square matrix products, to measure the peak rate, and its floating-point operations."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    count = 8
    kernel = jax.random.normal(jax.random.key(0), (size, size), DTYPES[dtype]) * size**-0.5  # keeps the scale

    @jax.jit
    def products(x: jax.Array) -> jax.Array:
        for _ in range(count):
            x = jnp.dot(x, kernel, precision=precision_of(x.dtype))
        return x

    return lambda: products(kernel), count * 2.0 * size**3


def memory_reads(dtype: str) -> tuple[Callable[[], jax.Array], float]:
    """Return products of a large matrix with a vector, which measure how fast weights are read, and their bytes."""
    rows, columns = (2**14, 2**12) if jax.default_backend() == "cpu" else (2**17, 2**13)  # far beyond any cache
    matrix, count = jnp.ones((rows, columns), DTYPES[dtype]), 2

    @jax.jit
    def products(matrix: jax.Array, vector: jax.Array) -> jax.Array:
        for _ in range(count):  # each needs the one before
            found = jnp.dot(matrix, vector, precision=precision_of(matrix.dtype))
            vector = vector + found[0]
        return vector

    vector = jnp.zeros((columns,), DTYPES[dtype])
    return lambda: products(matrix, vector), count * float(matrix.nbytes)


def show_figures(figures: Sequence[Figure], left_out: Mapping[str, str], console: Console) -> None:
    """Print the figures with their bounds and targets, and the missing figures with reasons."""
    table, bounded = Table(), any(figure.bound is not None for figure in figures)
    for column in ("figure", "measured", *(("bound", "measured / bound") if bounded else ()), "target", "met"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure in figures:
        target, limit = "", ("", "") if bounded else ()
        if figure.bound is not None:
            limit = (f"{figure.bound:,.4g} {figure.unit}".strip(), f"{figure.value / figure.bound:,.3g}")
        if figure.met is not None:
            sign, value = ("≤", figure.at_most) if figure.at_least is None else ("≥", figure.at_least)
            target = f"{sign} {value:g} {figure.unit}".strip()
        met = {True: "yes", False: "NO", None: ""}[figure.met]
        table.add_row(figure.name, f"{figure.value:,.4g} {figure.unit}".strip(), *limit, target, met)
    console.print(table)
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}", highlight=False, soft_wrap=True)
