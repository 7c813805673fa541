"""A plan in the terminal: a line a program."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from colm_jax.plan.plan import Cost

_GIB = 2**30


def show_costs(costs: Sequence[Cost], memory: int, console: Console) -> None:
    """Prints what each program needs of a chip that has `memory` bytes."""
    table = Table(title=f"per chip, in GiB of {memory / _GIB:.0f}")
    kinds = ("parameters", "optimizer", "experts", "caches")
    for name in ("program", *kinds, "rest", "peak", "fits", "Tflop"):
        table.add_column(name, justify="left" if name == "program" else "right")
    for cost in costs:
        held = [cost.resident.get(kind, 0) for kind in kinds]
        sizes = [f"{size / _GIB:.2f}" if size else "" for size in (*held, cost.peak - sum(held), cost.peak)]
        table.add_row(cost.program, *sizes, "yes" if cost.fits else "NO", f"{cost.flops / 1e12:.2f}")
    console.print(table)
