"""Other experts for the demo's pairs, for the study in docs/results.md: of other sizes, seeds, and knowledge.

    python -m docs.tables.experts DEMO ... [--names NAME ...]

For each DEMO that `colm demo --out DEMO` wrote, it writes DEMO/experts/NAME, of all names or of some: half, double (in
width), other (trained from another seed), wrong (two results of three with · are ten too many), sums (knows + and -, of
· and ^ only that results are digits) and products (the other way round).
"""

import argparse
import random
from dataclasses import replace
from pathlib import Path

from colm_jax.demo import pair
from colm_jax.demo.problems import Compute, calculate, careless
from colm_jax.demo.tokenizer import make_tokenizer
from colm_jax.models.config import ModelConfig
from colm_jax.storage import read_json

WRONG, SHARE = "·", 2 / 3


def wrong_on_products(rng: random.Random) -> Compute:
    """Results of which two of three with · are ten too many."""

    def compute(left: int, operator: str, right: int) -> int:
        result = calculate(left, operator, right)
        return result + 10 if operator == WRONG and rng.random() < SHARE else result

    return compute


def knowing(operators: str, rng: random.Random) -> Compute:
    """Right results of these operators, careless ones of all others."""
    guess = careless(rng)

    def compute(left: int, operator: str, right: int) -> int:
        return (calculate if operator in operators else guess)(left, operator, right)

    return compute


def of_width(config: ModelConfig, factor: float) -> ModelConfig:
    """The same model, wider or narrower by a factor; heads keep their number."""
    sizes = ("width", "head_dim", "ff")
    return replace(config, **{name: int(getattr(config, name) * factor) for name in sizes})


def write_expert(out: Path, name: str, seed: int) -> Path:
    """Trains the expert of this name, if it is not there; its directory."""
    if (out / "config.json").exists():
        return out
    tokenizer = make_tokenizer()
    config = pair.expert_config(tokenizer.get_vocab_size())
    factor = {"half": 0.5, "double": 2.0}.get(name, 1.0)
    rng = random.Random(f"{seed}: {name}")
    computes = {"wrong": wrong_on_products, "sums": lambda r: knowing("+-", r), "products": lambda r: knowing("·^", r)}
    compute = computes[name](rng) if name in computes else calculate
    start = seed + 1000 if name == "other" else seed
    texts = pair.bare_texts(tokenizer, start, pair.EXPERT_TEXTS, compute)
    pair.save(pair.pretrain(of_width(config, factor), texts, *pair.EXPERT_TRAINING, start), tokenizer, out)
    return out


NAMES = ("half", "double", "other", "wrong", "sums", "products")


def main() -> None:
    """Write all of them for every demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demos", metavar="DEMO", type=Path, nargs="+")
    parser.add_argument("--names", metavar="NAME", nargs="+", choices=NAMES, default=NAMES, help=", ".join(NAMES))
    flags = parser.parse_args()
    for demo in flags.demos:
        seed = read_json(demo / "pair/manifest.json")["settings"]["seed"]
        for name in flags.names:
            print(write_expert(demo / "experts" / name, name, seed), flush=True)


if __name__ == "__main__":
    main()
