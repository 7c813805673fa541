"""One model over the data: float32 log-probability of each text's own next token, and whether it was the argmax.

Scores are written in shards, each whole or not at all, so that an interrupted run resumes after the last whole shard.
Several processes compute each batch together and take turns in writing shards.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from colm_jax.console import Progress
from colm_jax.data.batches import Batch, PackedRows, collate, padded_length
from colm_jax.data.records import Examples
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.parallel import barrier, heed_stop, on_first, replicate
from colm_jax.scoring.head import head_argmax, head_scores
from colm_jax.storage import damaged_is_one_line, entries, local_copies, make_directory, replacing

SHARD_TEXTS = 128  # in a shard: what a kill can cost
_BATCH = 8  # texts per batch: at least on accelerators, at most on a CPU
# Positions that pass together on a CPU, at most (but for a single text): activations are in host memory there.
_CPU_POSITIONS = 512


@dataclass(frozen=True)
class Scores:
    """Scores of a whole data file; entry i belongs to example i, its element t to the token at t + 1."""

    log_prob: tuple[Float[np.ndarray, "_"], ...]  # float32, nats
    is_argmax: tuple[Bool[np.ndarray, "_"], ...]  # the model's own greedy choice is the text's token
    gate_logits: tuple[Float[np.ndarray, "_ M"], ...] | None = None  # float32; None where no gate was given

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
    allowed: Bool[Array, "A"] | None,
    spread: jax.sharding.NamedSharding | None,
    gate: Gate | None = None,
) -> tuple[Float[Array, "B T1-1"], Bool[Array, "B T1-1"], Float[Array, "B T1-1 M"] | None]:
    """Return scores [B, T], "is argmax" [B, T] and gate logits [B, T, M] of a batch of texts.

    The gate is applied here, so that hidden states never leave the device. Without one its logits are None. `spread`
    is the sharding of the texts on the mesh; None: all on one device.
    """
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens[:, :-1], spread=spread)
    log_prob, is_argmax = head_scores(decoder, hidden, tokens[:, 1:], allowed)
    gate_logits = None if gate is None else replicate(gate(hidden), spread)
    return replicate(log_prob, spread), replicate(is_argmax, spread), gate_logits


def texts_at_once(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, wanted: int = _BATCH) -> int:
    """Return texts of a batch: as many for each group of devices (data · fsdp), and at least as many as wanted."""
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-wanted // groups) * groups


def batches(
    examples: Examples, numbers: Sequence[int], spread: jax.sharding.NamedSharding | None
) -> Iterator[tuple[Sequence[int], Batch]]:
    """Return the examples of these numbers, a text a row; all of one shape, so that one compiled program serves."""
    length, size = padded_length(examples.lengths), _BATCH
    if jax.default_backend() == "cpu":  # a few rows are enough to use a CPU fully
        size = min(max(1, _CPU_POSITIONS // length), _BATCH)
    size = size if spread is None else texts_at_once(spread.mesh, size)
    for first in range(0, len(numbers), size):
        heed_stop()
        rows = numbers[first : first + size]
        yield rows, collate(examples.items, [[row] for row in rows], size, length)


def write_shards(
    examples: Examples,
    directory: Path,
    suffix: str,
    write: Callable[[Path | None, Sequence[int]], None],
    progress: Progress,
) -> None:
    """Have `write` write every missing shard-NNNNN of `directory`, from the numbers of its examples.

    If the shard is another process's, `write` gets no path: it computes its part and writes nothing. No process returns
    before all shards exist.
    """
    make_directory(directory)
    count = len(examples.items)
    paths = [directory / f"shard-{i:05d}{suffix}" for i in range(-(-count // SHARD_TEXTS))]

    def absent() -> list[bool]:
        there = set(entries(directory))
        return [path not in there for path in paths]

    missing = on_first(absent)  # by one look, so that all agree
    for number, path in enumerate(paths):
        shard = range(number * SHARD_TEXTS, min((number + 1) * SHARD_TEXTS, count))
        if missing[number]:
            mine = number % jax.process_count() == jax.process_index()
            write(path if mine else None, shard)
        progress(shard[-1] + 1, count)
    barrier()


def _passes(
    decoder: Decoder,
    examples: Examples,
    allowed: Bool[np.ndarray, "A"] | None,
    numbers: Sequence[int],
    gate: Gate | None = None,
) -> Iterator[tuple[Sequence[int], tuple]]:
    """Return the examples' scores, a batch at a time: which examples, and the results of `score_batch`."""
    graph, state = nnx.split(decoder)
    spread = decoder.batch_sharding
    for rows, batch in batches(examples, numbers, spread):
        yield rows, score_batch(graph, state, batch.tokens, allowed, spread, gate)


def score_examples(
    decoder: Decoder,
    examples: Examples,
    allowed: Bool[np.ndarray, "A"] | None = None,
    gate: Gate | None = None,
    progress: Progress = lambda done, total: None,
) -> Scores:
    """Return scores in memory: a few bytes a position, whatever the width of the model.

    Args:
      decoder: the model.
      examples: the texts.
      allowed: the shared vocabulary of A ids: probabilities are over it; None: all of the head's rows.
      gate: also its logits at each position, from the decoder's hidden states; None: no gate logits.
      progress: callback(examples done, total).
    """
    log_probs: list[np.ndarray] = []
    argmaxes: list[np.ndarray] = []
    gate_logits: list[np.ndarray] = []
    for rows, (log_prob, is_argmax, logits) in _passes(decoder, examples, allowed, range(len(examples.items)), gate):
        log_probs += _log_probs(examples, rows, log_prob, decoder)
        argmaxes += _texts(examples, rows, is_argmax)
        if logits is not None:
            gate_logits += _texts(examples, rows, logits)
        progress(len(log_probs), len(examples.items))
    return Scores(tuple(log_probs), tuple(argmaxes), None if gate is None else tuple(gate_logits))


@jax.jit(static_argnames=("graph", "spread"))
def _argmax_batch(
    graph: nnx.GraphDef,
    state: nnx.State,
    tokens: Int[Array, "B T1"],
    allowed: Bool[Array, "A"] | None,
    spread: jax.sharding.NamedSharding | None,
) -> Int[Array, "B T1-1"]:
    """Return the greedy choices in place of tokens[:, 1:]."""
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens[:, :-1], spread=spread)
    return replicate(head_argmax(decoder, hidden, allowed), spread)


def greedy_choices(
    decoder: Decoder, examples: Examples, allowed: Bool[np.ndarray, "A"] | None = None
) -> list[Int[np.ndarray, "_"]]:
    """Return the model's own most probable allowed token at each position of each text, int32."""
    graph, state = nnx.split(decoder)
    spread = decoder.batch_sharding
    found: list[np.ndarray] = []
    for rows, batch in batches(examples, range(len(examples.items)), spread):
        found += _texts(examples, rows, _argmax_batch(graph, state, batch.tokens, allowed, spread))
    return found


def score_to_directory(
    decoder: Decoder,
    examples: Examples,
    directory: Path,
    allowed: Bool[np.ndarray, "A"] | None = None,
    progress: Progress = lambda done, total: None,
) -> Scores:
    """Write scores into `directory` as shard-NNNNN.npz and return all of them; existing shards are kept."""

    def write(path: Path | None, numbers: Sequence[int]) -> None:
        log_probs: list[np.ndarray] = []
        argmaxes: list[np.ndarray] = []
        for rows, (log_prob, is_argmax, _) in _passes(decoder, examples, allowed, numbers):
            log_probs += _log_probs(examples, rows, log_prob, decoder)
            argmaxes += _texts(examples, rows, is_argmax)
            progress(rows[-1] + 1, len(examples.items))
        lengths = np.array([len(scores) for scores in log_probs], np.int64)
        if path is not None:
            log_prob, is_argmax = np.concatenate(log_probs), np.concatenate(argmaxes)
            digest = np.array(examples.digest(numbers))
            with replacing(path) as beside, beside.open("wb") as file:
                np.savez(file, lengths=lengths, log_prob=log_prob, is_argmax=is_argmax, digest=digest)

    write_shards(examples, directory, ".npz", write, progress)
    return load_scores(directory, examples)


def load_scores(directory: Path, examples: Examples) -> Scores:
    """Read what `score_to_directory` wrote for these examples.

    Raises:
      UserError: a shard is damaged or was made from other token ids or loss masks than these, or shards are missing.
    """
    log_probs: list[np.ndarray] = []
    argmaxes: list[np.ndarray] = []
    here = local_copies(directory, ["shard-?????.npz"])
    for path in sorted(here.glob("shard-?????.npz")):
        with damaged_is_one_line(directory / path.name), path.open("rb") as file, np.load(file) as shard:
            numbers = range(len(log_probs), len(log_probs) + len(shard["lengths"]))
            check_digest(directory / path.name, examples, numbers, str(shard["digest"]) if "digest" in shard else None)
            borders = np.cumsum(shard["lengths"])[:-1]
            log_probs += np.split(shard["log_prob"], borders)
            argmaxes += np.split(shard["is_argmax"], borders)
    check_count(directory, examples, len(log_probs))
    return Scores(tuple(log_probs), tuple(argmaxes))


def check_digest(path: Path, examples: Examples, numbers: range, digest: str | None) -> None:
    """Raise UserError where a shard's digest is not that of the examples of these numbers."""
    if numbers.stop > len(examples.items) or digest != examples.digest(numbers):
        raise UserError(f"{path}: was made from other data or with another tokenizer; delete {path.parent}")


def check_count(directory: Path, examples: Examples, count: int) -> None:
    """Raise UserError where shards hold fewer texts than there are."""
    if count != len(examples.items):
        raise UserError(f"{directory}: its shards hold {count} texts, the data has {len(examples.items)}; delete it")


def _log_probs(
    examples: Examples, rows: Sequence[int], values: Float[Array, "B T"], decoder: Decoder
) -> list[np.ndarray]:
    """Return `_texts` of log-probabilities.

    Raises:
      UserError: one of them is NaN: the model's activations are.
    """
    found = _texts(examples, rows, values)
    for row, log_prob in zip(rows, found):
        if np.isnan(log_prob).any():
            raise UserError(
                f"text {row}: the model's log-probabilities are NaN: its activations overflow in {decoder.dtype.name}; "
                "use float32, and if it is in use, the weights are damaged"
            )
    return found


def _texts(examples: Examples, rows: Sequence[int], values: Shaped[Array, "B T ..."]) -> list[np.ndarray]:
    """Return a batch's values [B, T, ...] as one array a text, [n-1, ...], copied to free the padding."""
    host = np.asarray(values)
    return [host[b, : examples.lengths[row] - 1].copy() for b, row in enumerate(rows)]
