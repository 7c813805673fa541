"""Print the table of docs/results.md that compares trained teams on the same texts, and their bases alone.

    python -m docs.tables.real_teams --texts texts RUN/team [RUN/team ...]

TEXTS is what `docs.tables.real_texts` wrote. Bits per byte are over the test texts; the constant mixture of each team's
models is the best of dev. Intervals are 95 %, of paired differences, texts resampled 2,000 times.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from colm_jax import CoLM
from colm_jax.data.records import read_jsonl
from colm_jax.evaluation.mixture import bits_per_byte, mixture_of
from colm_jax.evaluation.text import evaluate_text
from docs.tables.real_gates import table, with_interval

WAYS = ("base", "mixture", "team", "oracle")


@dataclass(frozen=True)
class Result:
    """What the test texts cost a team."""

    name: str
    bits: dict[str, Float[np.ndarray, "T"]]  # of each text, by way to write it
    bytes: Int[np.ndarray, "T"]  # of each text
    weight: float  # the experts' together, in the mixture
    p_defer: float  # mean over units


def measured(directory: Path, dev: list[dict[str, Any]], test: list[dict[str, Any]]) -> Result:
    """Score the texts with a team."""
    team = CoLM.from_pretrained(directory)
    weights, scored = mixture_of(team.score(dev)), team.score(test)
    sizes = np.array([text.bytes for text in scored])
    rates = [bits_per_byte([text], weights) for text in scored]
    bits = {way: np.array([rate[way] for rate in rates]) * sizes for way in WAYS}
    return Result(str(directory), bits, sizes, 1 - weights[0], evaluate_text(scored).deferral_rate)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teams", type=Path, nargs="+", metavar="TEAM", help="team directories, as RUN/team")
    parser.add_argument("--texts", type=Path, required=True, metavar="DIR")
    flags = parser.parse_args()
    dev, test = ([line for _, line in read_jsonl(flags.texts / f"{split}.jsonl")] for split in ("dev", "test"))
    results = [measured(directory, dev, test) for directory in flags.teams]
    domains = np.array([line["domain"] for line in test])
    for name in (*sorted(set(domains.tolist())), "all"):
        kept = (domains == name) | (name == "all")
        rows: list[list[str | float]] = []
        for result in results:
            bits = {way: own[kept] for way, own in result.bits.items()}
            size = result.bytes[kept]
            gained = with_interval(bits["mixture"] - bits["team"], size)
            rows.append([result.name, *(float(own.sum() / size.sum()) for own in bits.values()), gained])
        table(name, ["team", *WAYS, "mixture − team"], rows)
    others = [(other, way) for other in results for way in ("base", "mixture")]
    below = [
        [r.name, *(with_interval(other.bits[way] - r.bits["team"], r.bytes) for other, way in others)] for r in results
    ]
    table("By how much a team is below", ["team", *(f"{way} of {other.name}" for other, way in others)], below)
    table(
        "Deferral",
        ["team", "experts' weight in the mixture", "mean p_defer"],
        [[r.name, r.weight, r.p_defer] for r in results],
    )


if __name__ == "__main__":
    main()
