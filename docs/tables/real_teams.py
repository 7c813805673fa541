"""Print the table of docs/results.md that compares trained teams on the same texts, and their bases alone.

    python -m docs.tables.real_teams --texts texts RUN/team [RUN/team ...]

TEXTS is what `docs.tables.real_texts` wrote. Bits per byte are over the test texts; the constant mixture of each team's
models is the best of dev. Intervals are 95 %, of paired differences, texts resampled 2,000 times.
"""

import argparse
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from colm_jax import CoLM
from colm_jax.data.records import read_jsonl
from colm_jax.evaluation.mixture import mixture_of

SAMPLES = 2000


@dataclass(frozen=True)
class Result:
    """The bits of each test text under the ways to write of one team."""

    name: str
    bits: dict[str, Float[np.ndarray, "T"]]  # by way: base, mixture, team, oracle
    weight: float  # the experts' together, in the mixture
    p_defer: float  # mean over units


def measured(directory: Path, dev: list[dict], test: list[dict]) -> tuple[Result, Int[np.ndarray, "T"]]:
    """Score the texts with a team; return their bits, and the bytes of each."""
    team = CoLM.from_pretrained(directory)
    weights = np.array(mixture_of(team.score(dev)))
    found: dict[str, list[float]] = {"base": [], "mixture": [], "team": [], "oracle": []}
    sizes, chances = [], []
    for text in team.score(test):
        kept = text.unit_has_text
        models = text.unit_log_probs[kept].astype(np.float64)
        assert text.unit_gate_logits is not None  # of a team
        logits = text.unit_gate_logits[kept].astype(np.float64)
        gate = np.concatenate([np.zeros((len(logits), 1)), logits], axis=1)
        gate -= logsumexp(gate, axis=1, keepdims=True)
        ways = {
            "base": models[:, 0],
            "mixture": logsumexp(models + np.log(weights), axis=1),
            "team": logsumexp(models + gate, axis=1),
            "oracle": models.max(axis=1),
        }
        for name, log_prob in ways.items():
            found[name].append(-log_prob.sum() / log(2))
        sizes.append(text.bytes)
        chances.append(1 - np.exp(gate[:, 0]))
    bits = {name: np.array(column) for name, column in found.items()}
    result = Result(str(directory), bits, 1 - weights[0], float(np.concatenate(chances).mean()))
    return result, np.array(sizes)


def below(worse: Float[np.ndarray, "T"], better: Float[np.ndarray, "T"], sizes: Int[np.ndarray, "T"]) -> str:
    """Return by how many bits per byte `better` is lower, with its 95 % interval over texts."""
    saved = worse - better
    drawn = np.random.default_rng(0).integers(0, len(saved), (SAMPLES, len(saved)))
    low, high = np.quantile(saved[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    return f"{saved.sum() / sizes.sum():.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teams", type=Path, nargs="+", metavar="TEAM", help="team directories, as RUN/team")
    parser.add_argument("--texts", type=Path, required=True, metavar="DIR")
    flags = parser.parse_args()
    dev, test = ([line for _, line in read_jsonl(flags.texts / f"{split}.jsonl")] for split in ("dev", "test"))
    results = []
    for directory in flags.teams:
        result, sizes = measured(directory, dev, test)
        results.append(result)
    domains = np.array([line["domain"] for line in test])
    for name in (*sorted(set(domains.tolist())), "all"):
        kept = np.full(len(domains), True) if name == "all" else domains == name
        print(f"\n{name}\n\n| team | base | mixture | team | oracle | mixture − team |\n|{' --- |' * 6}")
        for result in results:
            columns = [f"{bits[kept].sum() / sizes[kept].sum():.3f}" for bits in result.bits.values()]
            gained = below(result.bits["mixture"][kept], result.bits["team"][kept], sizes[kept])
            print(f"| {result.name} | {' | '.join(columns)} | {gained} |")
    print()
    for result in results:
        print(
            f"{result.name}: the experts' weight in the mixture {result.weight:.3f}, mean p_defer {result.p_defer:.3f}"
        )
    for result in results:
        for other in results:
            for way in ("base", "mixture"):
                gained = below(other.bits[way], result.bits["team"], sizes)
                print(f"team of {result.name} below {way} of {other.name}: {gained}")


if __name__ == "__main__":
    main()
