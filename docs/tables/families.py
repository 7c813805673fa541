"""Measures every family and writes the table of docs/families.md:

python -m docs.tables.families
"""

import argparse
import os

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from docs.tables import put_table
from tests.models.families import CONFIGS, cached_error, parity_error, round_trips, sharded_error, write_family
from tests.models.make_golden import GOLDEN

DOCS = Path(__file__).parents[1] / "families.md"
BEGIN, END = "<!-- families -->", "<!-- end of families -->"
HEAD = "| tiny model | parity error | round trip | cached − full | sharded − unsharded |"


@dataclass(frozen=True)
class Row:
    """What was measured of a family; errors are the largest absolute differences."""

    parity: float  # of logits, from transformers'
    round_trip: bool  # float32, bfloat16 and float16, bit by bit
    cached: float  # of hidden states, in chunks through the cache from one pass
    sharded: float  # of logits, on eight devices from one


@lru_cache
def measure(name: str) -> Row:
    """One family's row."""
    with tempfile.TemporaryDirectory() as folder, np.load(GOLDEN / f"family-{name}.npz") as golden:
        directory = write_family(Path(folder) / name, name)
        return Row(
            parity_error(directory, golden["logits"], golden["positions"]),
            round_trips(directory),
            cached_error(directory),
            sharded_error(directory),
        )


def table(rows: dict[str, Row]) -> str:
    """The table, Markdown."""
    lines = [HEAD, "| --- | --- | --- | --- | --- |"]
    for name, row in rows.items():
        exact = "exact" if row.round_trip else "no"
        lines.append(f"| {name} | {row.parity:.0e} | {exact} | {row.cached:.0e} | {row.sharded:.0e} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table into the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    put_table(DOCS, BEGIN, END, table({name: measure(name) for name in CONFIGS}))


if __name__ == "__main__":
    main()
