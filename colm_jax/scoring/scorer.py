"""One model over the data: float32 log-probability of each text's own next token, and whether it was the argmax.

Written in shards, each beside its place and then renamed, so that a stopped run goes on behind the last whole shard.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from colm_jax.data.batches import Batch, collate, in_order, padded_length
from colm_jax.data.records import Examples
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.scoring.head import head_scores

SHARD_BATCHES = 16  # batches in a shard: what a kill can cost
_BATCH = 8

Progress = Callable[[int], None]  # told how many examples are done


@dataclass(frozen=True)
class Scores:
    """Scores of a whole data file; entry i belongs to example i, its element t to the token at t + 1."""

    log_prob: tuple[np.ndarray, ...]  # float32 [n-1], nats
    is_argmax: tuple[np.ndarray, ...]  # bool [n-1]: the model's own greedy choice is the text's token
    hidden: tuple[np.ndarray, ...] | None = None  # float32 [n-1, D], where they were asked for

    def padded(self, rows: np.ndarray, length: int) -> tuple[Float[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """The rows of a batch, right-padded with zeros to T = length - 1; row -1 is empty."""
        log_prob = np.zeros((len(rows), length - 1), np.float32)
        is_argmax = np.zeros((len(rows), length - 1), bool)
        for b, row in enumerate(rows):
            if row >= 0:
                log_prob[b, : len(self.log_prob[row])] = self.log_prob[row]
                is_argmax[b, : len(self.is_argmax[row])] = self.is_argmax[row]
        return log_prob, is_argmax


@jax.jit(static_argnames="graph")
def _score_batch(graph, state, tokens, allowed):
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens[:, :-1])
    log_prob, is_argmax = head_scores(decoder, hidden, tokens[:, 1:], allowed)
    return log_prob, is_argmax, hidden


def batches(examples: Examples, groups: list[list[int]]) -> Iterator[tuple[list[int], Batch]]:
    """Each group of rows as a batch; all of one shape, whatever the groups, so that one compiled program serves."""
    length = padded_length(examples.items)
    for rows in groups:
        yield rows, collate(examples.items, rows, _BATCH, length)


def write_shards(
    examples: Examples,
    directory: Path,
    suffix: str,
    write: Callable[[Path, list[list[int]]], None],
    progress: Progress,
) -> None:
    """Has `write` write every shard-NNNNN of `directory` that is not there yet, from its groups of rows."""
    directory.mkdir(parents=True, exist_ok=True)
    groups = in_order(examples.items, _BATCH)
    for number, first in enumerate(range(0, len(groups), SHARD_BATCHES)):
        shard = groups[first : first + SHARD_BATCHES]
        path = directory / f"shard-{number:05d}{suffix}"
        if not path.exists():
            beside = path.with_suffix(f".tmp{suffix}")
            write(beside, shard)
            beside.replace(path)
        progress(shard[-1][-1] + 1)


def _passes(
    decoder: Decoder, examples: Examples, allowed: np.ndarray | None, groups: list[list[int]]
) -> Iterator[tuple[list[int], tuple]]:
    graph, state = nnx.split(decoder)
    for rows, batch in batches(examples, groups):
        yield rows, _score_batch(graph, state, batch.tokens, allowed)


def score_examples(
    decoder: Decoder,
    examples: Examples,
    allowed: np.ndarray | None = None,
    keep_hidden: bool = False,
    progress: Progress = lambda done: None,
) -> Scores:
    """Scores in memory.

    Args:
      decoder: the model.
      examples: the texts.
      allowed: the shared vocabulary, [V] bool: probabilities are over it; None: all of the head's rows.
      keep_hidden: also the final hidden states that predict each token.
      progress: told how many examples are done.
    """
    log_probs: list[np.ndarray] = []
    argmaxes: list[np.ndarray] = []
    states: list[np.ndarray] = []
    for rows, (log_prob, is_argmax, hidden) in _passes(decoder, examples, allowed, in_order(examples.items, _BATCH)):
        _append(examples, rows, log_prob, is_argmax, log_probs, argmaxes)
        if keep_hidden:
            wide = np.asarray(hidden, np.float32)
            states += [wide[b, : len(examples.items[row].ids) - 1] for b, row in enumerate(rows)]
        progress(len(log_probs))
    return Scores(tuple(log_probs), tuple(argmaxes), tuple(states) if keep_hidden else None)


def score_to_directory(
    decoder: Decoder,
    examples: Examples,
    directory: Path,
    allowed: np.ndarray | None = None,
    progress: Progress = lambda done: None,
) -> Scores:
    """Scores into `directory` as shard-NNNNN.npz; shards already there are kept. Returns all of them."""

    def write(path: Path, groups: list[list[int]]) -> None:
        log_probs: list[np.ndarray] = []
        argmaxes: list[np.ndarray] = []
        for rows, (log_prob, is_argmax, _) in _passes(decoder, examples, allowed, groups):
            _append(examples, rows, log_prob, is_argmax, log_probs, argmaxes)
            progress(rows[-1] + 1)
        lengths = np.array([len(scores) for scores in log_probs], np.int64)
        np.savez(path, lengths=lengths, log_prob=np.concatenate(log_probs), is_argmax=np.concatenate(argmaxes))

    write_shards(examples, directory, ".npz", write, progress)
    return load_scores(directory, examples)


def load_scores(directory: Path, examples: Examples) -> Scores:
    """Reads what `score_to_directory` wrote for these examples.

    Raises:
      UserError: the shards hold other lengths than the data, so they were made from other data or another tokenizer.
    """
    log_probs: list[np.ndarray] = []
    argmaxes: list[np.ndarray] = []
    for path in sorted(directory.glob("shard-?????.npz")):
        with np.load(path) as shard:
            borders = np.cumsum(shard["lengths"])[:-1]
            log_probs += np.split(shard["log_prob"], borders)
            argmaxes += np.split(shard["is_argmax"], borders)
    if [len(scores) for scores in log_probs] != [len(example.ids) - 1 for example in examples.items]:
        raise UserError(f"{directory}: these scores belong to other data or another tokenizer; delete them")
    return Scores(tuple(log_probs), tuple(argmaxes))


def _append(examples, rows, log_prob, is_argmax, log_probs, argmaxes) -> None:
    log_prob, is_argmax = np.asarray(log_prob, np.float32), np.asarray(is_argmax)
    for b, row in enumerate(rows):
        length = len(examples.items[row].ids) - 1
        log_probs.append(log_prob[b, :length])
        argmaxes.append(is_argmax[b, :length])
