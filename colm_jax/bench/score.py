"""`colm bench score`: the speed of scoring beside its bound, and beside transformers' padded batches.

The actual scoring path (`score_examples`) reads random texts of realistic lengths with a random model, or a data file
with a model on disk. The bound is the larger of two times at rates that are measured in the same rounds: reading the
weights once a pass at the memory's bandwidth, and the operations that the texts need, none of them for padding or
masked attention, at the rate of matrix products.
"""

from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from colm_jax.bench.models import dtype_of, scored_model
from colm_jax.bench.timing import Announce, Figure, machine, matrix_products, memory_reads, ratio, take_turns
from colm_jax.bench.torch_model import thread_counts, why_not
from colm_jax.bench.torch_score import TorchScore
from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.huggingface import DTYPES, read_config
from colm_jax.checkpoints.team import load_expert, load_tokenizers
from colm_jax.data.records import Example, Examples
from colm_jax.data.tokens import open_tokens, tokenise
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import make_mesh
from colm_jax.plan.plan import matrix_flops
from colm_jax.scoring import score_examples
from colm_jax.scoring.passes import Passes
from colm_jax.scoring.scorer import score_batch
from colm_jax.seeds import random_key
from colm_jax.settings.bench import ScoreBench

AGREEMENT = 1e-3  # nats, between both frameworks' log-probabilities
_TORCH = "tokens/s / transformers' at its faster number of threads"
_SPREAD = 0.45  # standard deviation of the logarithm of a text's length, about that of GSM8K


def measure(settings: ScoreBench, announce: Announce = lambda name: None) -> tuple[list[Figure], dict[str, Any]]:
    """Run the benchmark; return the figures and the measurements (`left_out` has the missing figures and reasons).

    Args:
      settings: model, texts and amount of work.
      announce: callback(name), called before each piece of work; `pieces` is their number.

    Raises:
      UserError: a model or data file that cannot be used.
      RuntimeError: PyTorch's log-probabilities differ, so that times would compare different work.
    """
    announce("model and texts")
    dtype = dtype_of(settings)
    decoder, examples = _given(settings, dtype) if settings.model else _random(settings, dtype)
    passes = Passes.of(decoder, examples)
    batches = [shape for shard in passes.shards for shape, _ in passes.packing.batches(examples.lengths, shard)]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(decoder)))
    flops = needed_flops(decoder, examples.lengths)
    reason = why_not(dtype)

    works: dict[str, Any] = {"ours": partial(_log_probs, decoder, examples)}
    if reason is None:
        announce("comparing log-probabilities")
        torch = TorchScore(decoder, [item.ids for item in examples.items], settings.batch_size)
        _check_agreement(works["ours"](), torch(max(thread_counts())))
        works |= {f"transformers, threads: {n}": partial(torch, n) for n in thread_counts()}
    works["matmul"], product_flops = matrix_products(dtype)
    works["memory reads"], read_bytes = memory_reads(dtype)
    seconds = take_turns(works, settings.repeats, announce)

    read = [weights * len(batches) / read_bytes * time for time in seconds["memory reads"]]
    computed = [flops / product_flops * time for time in seconds["matmul"]]
    bound = [max(times) for times in zip(read, computed, strict=True)]
    tokens, positions = passes.counts.tokens, passes.counts.positions
    figures = [
        Figure("tokens/s", tokens / median(seconds["ours"])),
        Figure("tokens/s at the bound", tokens / median(bound)),
        Figure("tokens/s / the bound's", ratio(bound, seconds["ours"])),
        Figure("positions computed / tokens", positions / tokens, at_most=1.1),
        Figure("compiled programs", len(set(batches)), at_most=6),
    ]
    others = [ratio(times, seconds["ours"]) for name, times in seconds.items() if name.startswith("transformers")]
    if others:
        figures.append(Figure(_TORCH, min(others), at_least=1.0))
    return figures, {
        "machine": machine(reason is None),
        "settings": vars(settings) | {"dtype": dtype},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder))),
        "texts": len(examples.items),
        **passes.counts.as_json(),
        "passes": len(batches),
        "shapes": sorted({f"{shape.rows}x{shape.positions}" for shape in batches}),
        "needed_flops": flops,
        "weight_bytes": weights,
        "seconds": seconds,
        "bound_seconds": {"weights read": median(read), "matrix products": median(computed)},
        "left_out": {} if reason is None else {_TORCH: reason},
    }


def pieces(settings: ScoreBench) -> int:
    """Return the number of pieces of work of `measure`."""
    has_torch = why_not(dtype_of(settings)) is None
    return 1 + has_torch + (settings.repeats + 1) * (3 + has_torch * len(thread_counts()))


def needed_flops(decoder: Decoder, lengths: Int[np.ndarray, "N"]) -> float:
    """Return the operations of the matrix products that scoring texts needs: no padding, no masked attention.

    From the operations of one and of two positions: those of weights grow with the positions, those of attention with
    the pairs of them.
    """
    graph, state = nnx.split(decoder)

    def of(positions: int) -> float:
        tokens = jax.ShapeDtypeStruct((1, positions + 1), jnp.int32)
        return matrix_flops(score_batch.trace(graph, state, tokens, tokens, None, None).jaxpr.jaxpr)

    one, two = of(1), of(2)
    pair = (two - 2 * one) / 2
    read = lengths.astype(np.float64) - 1
    return float((one - pair) * read.sum() + pair * (read * (read + 1) / 2).sum())


def _log_probs(decoder: Decoder, examples: Examples) -> list[Float[np.ndarray, "_"]]:
    return list(score_examples(decoder, examples).log_prob)


def _check_agreement(ours: list[Float[np.ndarray, "_"]], theirs: list[Float[np.ndarray, "_"]]) -> None:
    difference = max(float(np.abs(a - b).max(initial=0.0)) for a, b in zip(ours, theirs, strict=True))
    if not difference <= AGREEMENT:
        raise RuntimeError(
            f"bench: log-probabilities differ from PyTorch's by {difference:.2g} nats; their times are not comparable"
        )


def _random(settings: ScoreBench, dtype: str) -> tuple[Decoder, Examples]:
    """Return a random model and random texts with log-normal lengths."""
    rng = np.random.default_rng(settings.seed)
    drawn = rng.lognormal(np.log(settings.length), _SPREAD, settings.texts)
    lengths = np.clip(drawn.astype(int), 2, settings.longest)
    items = [
        Example(rng.integers(0, settings.vocab_size, n).astype(np.int32), np.arange(n) > 0) for n in lengths.tolist()
    ]
    decoder = Decoder(scored_model(settings), nnx.Rngs(random_key(settings.seed)), DTYPES[dtype])
    return decoder, Examples(tuple(items), 0)


def _given(settings: ScoreBench, dtype: str) -> tuple[Decoder, Examples]:
    """Return the model on disk and the first texts of the data file."""
    assert settings.model is not None and settings.data is not None  # `ScoreBench` checks it
    directory = resolve(settings.model)
    (tokenizer,), allowed = load_tokenizers([directory])
    with TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        tokenise(settings.data, tokenizer, read_config(directory).context, tokens, allowed)
        examples = Examples(open_tokens(tokens).items[: settings.texts], 0)
    return load_expert(directory, tokenizer, dtype, dtype, make_mesh(), stacked=True), examples
