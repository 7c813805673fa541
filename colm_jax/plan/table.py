"""Terminal tables of a plan (one row per program) and of a launch (one row per stage)."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from colm_jax.plan.plan import Cost

_GIB = 2**30


def show_costs(costs: Sequence[Cost], memory: int, console: Console) -> None:
    """Print each program's cost per chip with `memory` bytes."""
    table = Table(title=f"per chip, in GiB of {memory / _GIB:.0f}")
    kinds = ("parameters", "optimizer", "experts", "caches")
    for name in ("program", *kinds, "rest", "peak", "fits", "Tflop"):
        table.add_column(name, justify="left" if name == "program" else "right")
    for cost in costs:
        held = [cost.resident.get(kind, 0) for kind in kinds]
        sizes = [f"{size / _GIB:.2f}" if size else "" for size in (*held, cost.peak - sum(held), cost.peak)]
        table.add_row(cost.program, *sizes, "yes" if cost.fits else "NO", f"{cost.flops / 1e12:.2f}")
    console.print(table)


def show_launch(launch: dict[str, Any], topology: str, console: Console) -> None:
    """Print the hours of each stage, their sum, and the bottlenecks."""
    chips, price = launch["chips"], launch["assumed"]["price_per_chip_hour"]
    work, efficiency = launch["workload"], launch["assumed"]["efficiency"]
    table = Table(
        title=f"{topology}: {chips} chips, {work['texts']:,} texts of {work['tokens']:,} tokens, "
        f"products at {efficiency:.0%} of peak"
    )
    for name in ("stage", "runs", "seconds each", "slowest", "hours", *(["price"] if price else [])):
        table.add_column(name, justify="left" if name in ("stage", "slowest") else "right")
    for stage in launch["stages"]:
        slowest, hours = stage["slowest"], stage["hours"]
        cells = [f"{stage['runs']:,}", f"{stage['seconds_of_a_run'][slowest]:.3g}", slowest, f"{hours:.2f}"]
        table.add_row(stage["stage"], *cells, *([f"{hours * chips * price:,.2f}"] if price else []))
    whole = ["", "", "", f"{launch['hours']:.2f}"]
    table.add_row("all", *whole, *([f"{launch['price']:,.2f}"] if price else []))
    console.print(table)
    for line in launch["warnings"]:
        console.print(f"[bold]warning[/]: {line}", highlight=False, soft_wrap=True)
