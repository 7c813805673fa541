"""`colm bench`: the performance tables of the docs."""

import argparse
import itertools
from importlib import import_module
from typing import Any

from colm_jax.cli.flags import Flags, Parser, given, setting_flags
from colm_jax.settings.bench import DecodeBench, TrainBench

EXAMPLE = "colm bench decode"
_KINDS = {"train": TrainBench, "decode": DecodeBench}


def add_flags(parser: Parser) -> None:
    """Declare the command's flags: two benchmarks with flags of their own."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    train = _bench(
        benches,
        "train",
        "What Co-LLM adds to a fine-tuning step, in time and memory; a fine-tuning step against PyTorch's.",
        "Random weights and texts; about 4 minutes on 2 CPU cores. PyTorch is compared where it is installed; its CPU "
        "build is enough.",
        "colm bench train --repeats 9\nsizes: --gin.TrainBench.width=256, and vocab_size, depth, heads, ff, texts, "
        "epochs",
    )
    setting_flags(train, TrainBench, "batch_size", "length", "dtype", "repeats")
    decode = _bench(
        benches,
        "decode",
        "What collaborative decoding costs, against its parts, the expert alone, and a plain loop in PyTorch.",
        "A random pair; which tokens are deferred is forced. Takes about a quarter of an hour on 2 CPU cores. PyTorch "
        "is compared\non the CPU, where it is installed; its CPU build is enough.",
        "colm bench decode --repeats 5\nsizes: --gin.DecodeBench.expert_width=512, and vocab_size, base_width, "
        "base_depth, base_heads, base_ff,\nexpert_depth, expert_heads, expert_ff, seed",
    )
    names = ("prompt_tokens", "new_tokens", "rates", "batch_size", "dtype", "repeats")
    setting_flags(decode, DecodeBench, *names)


def _bench(benches: Any, name: str, summary: str, detail: str, example: str) -> Parser:
    return benches.add_parser(
        name,
        help=summary,
        description=f"{summary}\n{detail}",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(flags: Flags) -> dict[str, Any]:
    """Measure, and show the figures."""
    from colm_jax import console
    from colm_jax.bench.timing import show_figures

    kind = _KINDS[flags.bench]
    flags.bindings.bind(kind.__name__, **given(vars(flags), kind))
    settings: Any = flags.bindings.make(kind)
    module: Any = import_module(f"colm_jax.bench.{flags.bench}")
    with console.bar("measuring", module.pieces(settings)) as bar:
        begun = itertools.count()
        figures, details = module.measure(settings, lambda name: bar.to(next(begun), note=name))
    show_figures(figures, details["left_out"], console.errors)
    return {"figures": [figure.as_json() for figure in figures], **details}
