"""One model over the data: float32 log-probability of each text's own next token, and whether it was the argmax.

Where units are spans, what is written are their scores (`units.py`), in the places of their first tokens of the base.
Scores are written in shards, each whole or not at all, so that an interrupted run resumes after the last whole shard.
Several processes compute each batch together and take turns in writing shards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.console import Progress
from colm_jax.data.batches import Batch
from colm_jax.data.packing import PackedRows
from colm_jax.data.records import Example, Examples
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.parallel import barrier, on_first, replicate
from colm_jax.scoring.head import head_argmax, score_head
from colm_jax.scoring.passes import NO_PASSES, PassCounts, Passes, counting, shards_of
from colm_jax.scoring.units import ScoredUnits, UnitScores, in_layout, unit_scores
from colm_jax.storage import damaged_is_one_line, entries, local_copies, make_directory, replacing
from colm_jax.text.spans import Opening


@dataclass(frozen=True)
class Scores:
    """Scores of a whole data file; entry i belongs to example i, its element t to the token at t + 1."""

    log_prob: tuple[Float[np.ndarray, "_"], ...]  # float32, nats
    is_argmax: tuple[Bool[np.ndarray, "_"], ...]  # the model's own greedy choice is the text's token
    gate_logits: tuple[Float[np.ndarray, "_ M"], ...] | None = None  # float32; None where no gate was given
    # Log of the opening mass at each position, float32; None where it was not asked for.
    log_opening: tuple[Float[np.ndarray, "_"], ...] | None = None
    # Where `is_argmax` is known, of an expert that gives no log-probabilities (`log_prob` is NaN); None: everywhere.
    known: tuple[Bool[np.ndarray, "_"], ...] | None = None
    counts: PassCounts = NO_PASSES  # of the passes that gave them

    def aligned(
        self, rows: PackedRows, shape: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Return the scores of a batch's rows in the places of its tokens; zeros elsewhere."""
        log_prob, is_argmax = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for b, row in enumerate(rows):
            start = 0
            for number in row:
                end = start + len(self.log_prob[number])
                log_prob[b, start:end] = self.log_prob[number]
                is_argmax[b, start:end] = self.is_argmax[number]
                start = end + 1  # a text of n tokens has n - 1 scores
        return log_prob, is_argmax


@jax.jit(static_argnames=("graph", "spread"))
def score_batch(
    graph: nnx.GraphDef,
    state: nnx.State,
    tokens: Int[Array, "B T1"],
    segments: Int[Array, "B T1"],
    allowed: Bool[Array, "A"] | None,
    spread: jax.sharding.NamedSharding | None,
    gate: Gate | None = None,
    opening: Opening | None = None,
) -> tuple[
    Float[Array, "B T1-1"], Bool[Array, "B T1-1"], Float[Array, "B T1-1 M"] | None, Float[Array, "B T1-1"] | None
]:
    """Return scores, "is argmax", gate logits and the log of the opening mass at each position of packed rows.

    The gate is applied here, so that hidden states never leave the device. Without one its logits are None, and without
    `opening` the mass. `spread` is the sharding of the rows on the mesh; None: all on one device.
    """
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens[:, :-1], segments=segments[:, :-1], spread=spread)
    uncertain = gate is not None and gate.reads_logits
    found = score_head(decoder, hidden, tokens, allowed, opening, uncertain)
    log_opening = None if found.log_opening is None else replicate(found.log_opening, spread)
    gate_logits = None if gate is None else replicate(gate.of(hidden, found.uncertainty), spread)
    return replicate(found.log_prob, spread), replicate(found.is_argmax, spread), gate_logits, log_opening


def write_shards(
    texts: int,
    directory: Path,
    suffix: str,
    write: Callable[[Path | None, range, Callable[[int], None]], None],
    progress: Progress,
) -> None:
    """Write every missing shard-NNNNN of `directory`. No process returns before all shards exist.

    Args:
      texts: how many there are.
      directory: where the shards are.
      suffix: of their names.
      write: computes and writes one shard, from its path, the numbers of its texts and a callback(texts done). If the
        shard is another process's, it gets no path: it computes its part and writes nothing.
      progress: callback(texts done, total).
    """
    make_directory(directory)
    shards = shards_of(texts)
    paths = [directory / f"shard-{i:05d}{suffix}" for i in range(len(shards))]

    def absent() -> list[bool]:
        there = set(entries(directory))
        return [path not in there for path in paths]

    missing = on_first(absent)  # by one look, so that all agree
    for number, (path, shard) in enumerate(zip(paths, shards, strict=True)):
        if missing[number]:
            mine = number % jax.process_count() == jax.process_index()
            write(path if mine else None, shard, counting(shard, texts, progress))
        progress(shard.stop, texts)
    barrier()


def _scoring(
    decoder: Decoder, allowed: Bool[np.ndarray, "A"] | None, gate: Gate | None = None, opening: Opening | None = None
) -> Callable[[Batch], tuple]:
    """Return the function from a batch to its scores."""
    graph, state = nnx.split(decoder)
    spread = decoder.batch_sharding
    opening = None if opening is None else jax.tree.map(jnp.asarray, opening)
    return lambda batch: score_batch(graph, state, batch.tokens, batch.segments, allowed, spread, gate, opening)


def score_examples(
    decoder: Decoder,
    examples: Examples,
    allowed: Bool[np.ndarray, "A"] | None = None,
    gate: Gate | None = None,
    progress: Progress = lambda done, total: None,
    opening: Opening | None = None,
) -> Scores:
    """Return scores of tokens in memory: a few bytes a position, whatever the width of the model.

    Args:
      decoder: the model.
      examples: the texts.
      allowed: the shared vocabulary of A ids: probabilities are over it; None: all of the head's rows.
      gate: also its logits at each position; None: no gate logits.
      progress: callback(examples done, total).
      opening: the model's; also the opening mass at each position. None: without.

    Raises:
      UserError: log-probabilities are NaN.
    """
    passes, score = Passes.of(decoder, examples), _scoring(decoder, allowed, gate, opening)
    found: list[tuple[np.ndarray, ...]] = []
    for shard in passes.shards:
        found += passes.results(shard, score, passes.counting(shard, progress))
    columns = iter(list(zip(*found)) or [()] * 4)
    log_prob, is_argmax = next(columns), next(columns)
    gate_logits = None if gate is None else next(columns)
    log_opening = None if opening is None else next(columns)
    return Scores(log_prob, is_argmax, gate_logits, log_opening, counts=passes.counts)


def score_units(
    decoder: Decoder,
    opening: Opening | None,
    examples: Examples | Sequence[Example],
    allowed: Bool[np.ndarray, "A"] | None = None,
    progress: Progress = lambda done, total: None,
) -> ScoredUnits:
    """Return the scores of the units of texts, as `unit_scores`; arguments as of `score_examples`."""
    texts = examples if isinstance(examples, Examples) else Examples(tuple(examples), 0)
    scores = score_examples(decoder, texts, allowed, None, progress, opening)
    return ScoredUnits(units_of(scores, texts), scores.counts)


def units_of(scores: Scores, examples: Examples) -> list[UnitScores]:
    """Return the scores of the units of each text from scores of tokens."""
    masses = scores.log_opening or (None,) * len(scores.log_prob)
    return [unit_scores(*each) for each in zip(examples.items, scores.log_prob, scores.is_argmax, masses, strict=True)]


@jax.jit(static_argnames=("graph", "spread"))
def _argmax_batch(
    graph: nnx.GraphDef,
    state: nnx.State,
    tokens: Int[Array, "B T1"],
    segments: Int[Array, "B T1"],
    allowed: Bool[Array, "A"] | None,
    spread: jax.sharding.NamedSharding | None,
) -> Int[Array, "B T1-1"]:
    """Return the greedy choices in place of tokens[:, 1:]."""
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens[:, :-1], segments=segments[:, :-1], spread=spread)
    return replicate(head_argmax(decoder, hidden, allowed), spread)


def greedy_choices(
    decoder: Decoder, examples: Examples, allowed: Bool[np.ndarray, "A"] | None = None
) -> list[Int[np.ndarray, "_"]]:
    """Return the model's own most probable allowed token at each position of each text, int32."""
    graph, state = nnx.split(decoder)
    spread, passes = decoder.batch_sharding, Passes.of(decoder, examples)

    def choose(batch: Batch) -> tuple[Int[Array, "B T"]]:
        return (_argmax_batch(graph, state, batch.tokens, batch.segments, allowed, spread),)

    return [choices for numbers in passes.shards for (choices,) in passes.results(numbers, choose)]


def score_to_directory(
    decoder: Decoder,
    examples: Examples,
    directory: Path,
    allowed: Bool[np.ndarray, "A"] | None = None,
    progress: Progress = lambda done, total: None,
    opening: Opening | None = None,
    own: Examples | None = None,
) -> Scores:
    """Write scores into `directory` as shard-NNNNN.npz and return all of them; existing shards are kept.

    Args:
      decoder: the model.
      examples: the texts as the base reads them, in whose places scores are written.
      directory: where.
      allowed: as in `score_examples`, of this model.
      progress: callback(examples done, total).
      opening: the model's, where units are spans; None: every token is a unit.
      own: the same texts as this model reads them; None: as the base.

    Raises:
      UserError: log-probabilities are NaN; as `load_scores`.
    """
    texts = examples if own is None else own
    passes, score = Passes.of(decoder, texts), _scoring(decoder, allowed, opening=opening)

    def results(numbers: range, done: Callable[[int], None]) -> list[tuple[np.ndarray, np.ndarray]]:
        found = passes.results(numbers, score, done)
        if own is None and opening is None:
            return [(log_prob, is_argmax) for log_prob, is_argmax in found]
        masses = [None if opening is None else columns[2] for columns in found]
        return [
            in_layout(examples.items[number], unit_scores(texts.items[number], columns[0], columns[1], mass))
            for number, columns, mass in zip(numbers, found, masses, strict=True)
        ]

    write_scores(examples, directory, results, progress)
    return replace(load_scores(directory, examples), counts=passes.counts)


def write_scores(
    examples: Examples,
    directory: Path,
    results: Callable[[range, Callable[[int], None]], Sequence[tuple[np.ndarray, ...]]],
    progress: Progress,
) -> None:
    """Write every missing shard of scores.

    Args:
      examples: the texts.
      directory: where.
      results: from the numbers of a shard's texts and a callback(texts done) to log-probabilities and "is argmax" of
        each; a third array says where the second is known, and then the first is not.
      progress: callback(texts done, total).
    """

    def write(path: Path | None, numbers: range, done: Callable[[int], None]) -> None:
        columns = list(zip(*results(numbers, done)))
        lengths = np.array([len(scores) for scores in columns[0]], np.int64)
        if path is not None:
            arrays: dict[str, Any] = dict(zip(("log_prob", "is_argmax", "known"), map(np.concatenate, columns)))
            digest = np.array(examples.digest(numbers))
            with replacing(path) as beside, beside.open("wb") as file:
                np.savez(file, lengths=lengths, digest=digest, **arrays)

    write_shards(len(examples.items), directory, ".npz", write, progress)


def load_scores(directory: Path, examples: Examples) -> Scores:
    """Read what `score_to_directory` wrote for these examples.

    Raises:
      UserError: a shard is damaged or was made from other token ids or loss masks than these, or shards are missing.
    """
    log_probs: list[np.ndarray] = []
    argmaxes: list[np.ndarray] = []
    known: list[np.ndarray] = []
    here = local_copies(directory, ["shard-?????.npz"])
    for path in sorted(here.glob("shard-?????.npz")):
        with damaged_is_one_line(directory / path.name), path.open("rb") as file, np.load(file) as shard:
            numbers = range(len(log_probs), len(log_probs) + len(shard["lengths"]))
            check_digest(directory / path.name, examples, numbers, str(shard["digest"]) if "digest" in shard else None)
            borders = np.cumsum(shard["lengths"])[:-1]
            log_probs += np.split(shard["log_prob"], borders)
            argmaxes += np.split(shard["is_argmax"], borders)
            known += np.split(shard["known"], borders) if "known" in shard else []
    check_count(directory, examples, len(log_probs))
    return Scores(tuple(log_probs), tuple(argmaxes), known=tuple(known) or None)


def check_digest(path: Path, examples: Examples, numbers: range, digest: str | None) -> None:
    """Raise UserError where a shard's digest is not that of the examples of these numbers."""
    if numbers.stop > len(examples.items) or digest != examples.digest(numbers):
        raise UserError(f"{path}: was made from other data or with another tokenizer; delete {path.parent}")


def check_count(directory: Path, examples: Examples, count: int) -> None:
    """Raise UserError where shards hold fewer texts than there are."""
    if count != len(examples.items):
        raise UserError(f"{directory}: its shards hold {count} texts, the data has {len(examples.items)}; delete it")
