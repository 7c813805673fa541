"""`colm bench`: the performance tables of the docs."""

import argparse
import itertools
from importlib import import_module
from typing import Any

from colm_jax.cli.flags import Flags, Parser, given, setting_flags
from colm_jax.errors import UserError
from colm_jax.settings.bench import (
    CompiledBench,
    DecodeBench,
    GuestsBench,
    ScoreBench,
    ServingBench,
    SpeculationBench,
    TrainBench,
)

EXAMPLE = "colm bench decode"
_KINDS = {
    "train": TrainBench,
    "score": ScoreBench,
    "decode": DecodeBench,
    "speculation": SpeculationBench,
    "compiled": CompiledBench,
    "guests": GuestsBench,
    "serving": ServingBench,
}


def add_flags(parser: Parser) -> None:
    """Declare the command's flags: each benchmark has flags of its own."""
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
        "A random pair, without speculation; which tokens are deferred is forced. Takes about a quarter of an hour on "
        "2 CPU cores. PyTorch "
        "is compared\non the CPU, where it is installed; its CPU build is enough.",
        "colm bench decode --repeats 5\nsizes: --gin.DecodeBench.expert_width=512, and vocab_size, base_width, "
        "base_depth, base_heads, base_ff,\nexpert_depth, expert_heads, expert_ff, seed",
    )
    sizes = "prompt_tokens", "new_tokens", "rates", "batch_size", "dtype", "repeats"
    setting_flags(decode, DecodeBench, *sizes)
    speculation = _bench(
        benches,
        "speculation",
        "What speculation saves: decoding with drafts against the plain loop, by how often base and expert agree.",
        "A random base, and experts made of its layers and further ones. About 10 minutes on 2 CPU cores.",
        "colm bench speculation --agreements 0.9 0.5\nsizes: --gin.SpeculationBench.width=256, and vocab_size, heads, "
        "ff, base_depth, expert_depth, seed",
    )
    names = "agreements", "rate", "prompt_tokens", "new_tokens", "requests", "dtype", "repeats"
    setting_flags(speculation, SpeculationBench, *names)
    compiled = _bench(
        benches,
        "compiled",
        "Bytes that compiled programs move to and from a TPU chip's memory, against the least they can. Exits with 1 "
        "where a figure is above its target.",
        "A base step, an expert pass, scoring and a training step, compiled without hardware: pip install "
        "'colm-jax[plan]'. A few minutes on 2 CPU cores.",
        "colm bench compiled --topology v5e:2x2\nsizes: --gin.CompiledBench.expert_width=4096, and vocab_size, "
        "base_width, base_depth, base_heads, base_ff,\nexpert_depth, expert_heads, expert_ff",
    )
    setting_flags(compiled, CompiledBench, "topology", "length", "slots", "batch_size", "dtype")
    score = _bench(
        benches,
        "score",
        "How fast texts are scored, against the bound of the machine and transformers' padded batches.",
        "Random weights and texts, or a model and a data file; about 5 minutes on 2 CPU cores. PyTorch is compared on "
        "the CPU,\nwhere it is installed; its CPU build is enough.",
        "colm bench score --model MODEL --data train.jsonl --texts 300\nsizes: --gin.ScoreBench.width=256, and "
        "vocab_size, depth, heads, ff, longest, seed",
    )
    guests = _bench(
        benches,
        "guests",
        "What decoding with an expert of another tokenizer costs, against its parts.",
        "A base and an expert of your own; which spans the expert writes is forced. A few minutes with small models.",
        "colm bench guests --base SMALL.gguf --expert LARGE.gguf --rate 0.2",
    )
    setting_flags(guests, GuestsBench, "base", "expert", "rate", "new_tokens", "dtype", "repeats")
    serving = _bench(
        benches,
        "serving",
        "What the server costs beyond the engine: eight clients' streams, and the time to a first token.",
        "A team of your own, served in this process to clients in another one. A few minutes with small models.",
        "colm bench serving --base RUN/team",
    )
    setting_flags(serving, ServingBench, "base", "experts", "prompt_tokens", "new_tokens", "dtype", "repeats")
    setting_flags(score, ScoreBench, "model", "data", "texts", "length", "batch_size", "dtype", "repeats")


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
    try:
        module: Any = import_module(f"colm_jax.bench.{flags.bench}")
    except ModuleNotFoundError as error:
        raise UserError(f"bench {flags.bench} needs {error.name}: pip install 'colm-jax[serve]'") from None
    with console.bar("measuring", module.pieces(settings)) as bar:
        begun = itertools.count()
        figures, details = module.measure(settings, lambda name: bar.to(next(begun), note=name))
    show_figures(figures, details["left_out"], console.errors)
    for name in details.get("failed", ()):
        console.errors.print(f"above the target: {name}", highlight=False, soft_wrap=True)
    return {"figures": [figure.as_json() for figure in figures], **details}
