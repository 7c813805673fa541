"""What each model would have written: written answers are read once more, and at each token a model's likeliest noted.

Beside the answers themselves this is what a report shows of them: where a model was unsure, and what it had in mind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.console import Progress
from colm_jax.data.batches import Batch
from colm_jax.data.records import Example, Examples
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import replicate
from colm_jax.scoring.head import by_chunks
from colm_jax.scoring.passes import Passes

TOP = 3  # candidates kept of each model


@dataclass(frozen=True)
class Candidates:
    """One model's view of one answer of N tokens; probabilities are over the shared vocabulary."""

    tokens: Int[np.ndarray, "N k"]  # the k likeliest, best first
    probabilities: Float[np.ndarray, "N k"]  # theirs, float32
    written: Float[np.ndarray, "N"]  # probability of the token that was written
    entropy: Float[np.ndarray, "N"]  # of the whole distribution, nats


Columns = tuple[Int[Array, "B T k"], Float[Array, "B T k"], Float[Array, "B T"], Float[Array, "B T"]]


def top_candidates(logits: Float[Array, "B T V"], tokens: Int[Array, "B T"], top: int) -> Columns:
    """Return the fields of `Candidates` at each position, float32; ids with logit -inf have probability 0."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    best, ids = jax.lax.top_k(log_p, top)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(p * jnp.where(p > 0, log_p, 0), axis=-1)
    written = jnp.take_along_axis(p, tokens[..., None], axis=-1)[..., 0]
    return ids, jnp.exp(best), written, entropy


@jax.jit(static_argnames=("graph", "spread", "top"))
def _candidates_batch(
    graph: nnx.GraphDef,
    state: nnx.State,
    tokens: Int[Array, "B T1"],
    segments: Int[Array, "B T1"],
    allowed: Bool[Array, "A"],
    spread: jax.sharding.NamedSharding | None,
    top: int,
) -> Columns:
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens[:, :-1], segments=segments[:, :-1], spread=spread)
    found = by_chunks(partial(top_candidates, top=top), decoder, hidden, (tokens[:, 1:],), allowed)
    ids, best, written, entropy = (replicate(x, spread) for x in found)
    return ids, best, written, entropy


def find_candidates(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    allowed: Bool[np.ndarray, "A"],
    top: int = TOP,
    progress: Progress = lambda done, total: None,
) -> list[Candidates]:
    """Read every prompt with its answer under one model.

    Args:
      decoder: the model.
      prompts: token ids before each answer, at least one.
      answers: the written token ids; an answer may be empty.
      allowed: the shared vocabulary, all that was ever to be written.
      top: candidates kept at each token; fewer where the shared vocabulary is smaller.
      progress: callback(answers done, total).

    Raises:
      ValueError: an empty prompt, whose first written token no model predicts.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("every prompt needs at least one token")
    texts = []
    for prompt, answer in zip(prompts, answers, strict=True):
        written = np.arange(len(prompt) + len(answer)) >= len(prompt)
        texts.append(Example(np.array([*prompt, *answer], np.int32), written))
    # A prompt of one token and an empty answer leave nothing to read.
    numbers = [i for i, text in enumerate(texts) if text.targets.any()]
    examples = Examples([texts[i] for i in numbers], 0)
    top = min(top, int(allowed.sum()))
    nothing = np.zeros((0, top), np.int32), np.zeros((0, top), np.float32), *np.zeros((2, 0), np.float32)
    found = [Candidates(*nothing) for _ in texts]
    if not numbers:
        return found
    graph, state = nnx.split(decoder)
    spread, passes = decoder.batch_sharding, Passes.of(decoder, examples)

    def compute(batch: Batch) -> tuple[Array, ...]:
        ids, best, written, entropy = _candidates_batch(
            graph, state, batch.tokens, batch.segments, allowed, spread, top
        )
        return entropy, ids, best, written  # first what is NaN where anything is

    for shard in passes.shards:
        columns = passes.results(shard, compute, passes.counting(shard, progress))
        for row, (entropy, ids, best, written) in zip(shard, columns, strict=True):
            kept = np.flatnonzero(examples.items[row].targets[1:])
            found[numbers[row]] = Candidates(ids[kept], best[kept], written[kept], entropy[kept])
    return found
