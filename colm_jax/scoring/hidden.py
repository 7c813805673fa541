"""The base's final hidden states at every position that counts, on disk: what the gate is fitted to.

They depend on the base and the texts alone, so that they outlive an exchange of experts. Where the gate reads more than
hidden states (`models.gate`), that stands in further columns, and depends on the shared vocabulary too. Shards are
plain .npy files, to be mapped into memory: writing holds one batch, reading what is asked for. A position takes 4 · D
bytes. Out of a bucket every host copies them to its own disk, since a fit reads them many times.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.console import Progress
from colm_jax.data.batches import Batch
from colm_jax.data.records import Examples
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import gate_row, gate_width
from colm_jax.parallel import replicate
from colm_jax.scoring.head import head_uncertainty
from colm_jax.scoring.passes import PassCounts, Passes
from colm_jax.scoring.scorer import check_count, check_digest, write_shards
from colm_jax.storage import damaged_is_one_line, local_copies, read_json, replacing, write_json


@jax.jit(static_argnames=("graph", "spread", "inputs"))
def _hidden_batch(
    graph: nnx.GraphDef,
    state: nnx.State,
    tokens: Int[Array, "B T1"],
    segments: Int[Array, "B T1"],
    spread: jax.sharding.NamedSharding | None,
    inputs: str,
    allowed: Bool[Array, "A"] | None,
) -> Float[Array, "B T1-1 I"]:
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens[:, :-1], segments=segments[:, :-1], spread=spread)
    return gate_row(hidden, head_uncertainty(decoder, hidden, allowed) if inputs == "uncertainty" else None)


@jax.jit(static_argnames="spread")
def _row(
    hidden: Float[Array, "B T D"], row: Int[Array, ""], spread: jax.sharding.NamedSharding | None
) -> Float[Array, "T D"]:
    """Return one row of a batch; no device gathers more of the others' rows than this one."""
    return replicate(hidden[row], spread)


def hidden_to_directory(
    decoder: Decoder,
    examples: Examples,
    directory: Path,
    progress: Progress = lambda done, total: None,
    inputs: str = "hidden",
    allowed: Bool[np.ndarray, "A"] | None = None,
) -> PassCounts:
    """Write final hidden states into `directory` as shard-NNNNN.npy, float32 [n, D]; existing shards are kept.

    Row by row they are the states that predict the tokens that count in the loss, in the order of the texts. Which
    texts these are says shard-NNNNN.json, which is written first. Returns what all shards took.

    Args:
      decoder: the base.
      examples: the texts.
      directory: where.
      progress: callback(texts done, total).
      inputs: what the gate reads, one of `settings.training.GATE_INPUTS`; rows of "uncertainty" are [n, D + 3].
      allowed: the shared vocabulary of A ids, which uncertainties are over; None: all of the head's rows.

    Raises:
      UserError: hidden states are NaN.
    """
    graph, state = nnx.split(decoder)
    spread, passes = decoder.batch_sharding, Passes.of(decoder, examples)
    width = gate_width(decoder.config.width, inputs)
    item = np.dtype(np.float32).itemsize * width  # bytes of a row

    def compute(batch: Batch) -> Float[Array, "B T I"]:
        return _hidden_batch(graph, state, batch.tokens, batch.segments, spread, inputs, allowed)

    def write(path: Path | None, numbers: range, done: Callable[[int], None]) -> None:
        counts = examples.index["targets"][np.asarray(numbers)].astype(np.int64)
        first = dict(zip(numbers, np.cumsum(counts) - counts))  # each text's first state in the shard
        with ExitStack() as opened:
            shard, start = None, 0
            if path is not None:
                # Written by positions in the file, not through a map: there a full disk ends the process (SIGBUS).
                shard = opened.enter_context(opened.enter_context(replacing(path)).open("wb"))
                kind = {"descr": np.dtype(np.float32).str, "fortran_order": False}
                shape = int(counts.sum()), width
                np.lib.format.write_array_header_1_0(shard, kind | {"shape": shape})
                start = shard.tell()
            finished = 0
            for packed in passes.shard(numbers):
                hidden = compute(packed.batch)
                for row, places in groupby(packed.places, key=lambda place: place.row):
                    # All processes wait for it, the one that writes too: else those ahead fill the devices' queues.
                    states = np.asarray(_row(hidden, row, spread))
                    texts = tuple(replace(place, row=0) for place in places)
                    alone = replace(packed, places=texts)
                    passes.check_not_nan(
                        alone, states[None], lambda batch: np.asarray(_row(compute(batch), 0, spread))[None]
                    )
                    for place in texts:
                        counted = place.of(states[None])[packed.batch.mask[row, place.start : place.stop]]
                        if shard is not None:
                            shard.seek(start + int(first[place.number]) * item)
                            shard.write(counted.tobytes())
                    finished += len(texts)
                done(finished)
            if path is not None:
                write_json(_facts(path), {"texts": len(numbers), "digest": examples.digest(numbers)})

    write_shards(len(examples.items), directory, ".npy", write, progress)
    return passes.counts


def open_hidden(directory: Path, examples: Examples) -> tuple[Float[np.ndarray, "n I"], ...]:
    """Return the shards that `hidden_to_directory` wrote for these examples, mapped into memory, not read.

    Raises:
      UserError: a shard was made from other token ids or loss masks than these, or shards are missing.
    """
    shards, count = [], 0
    here = local_copies(directory, ["shard-?????.npy", "shard-?????.json"])
    for path in sorted(here.glob("shard-?????.npy")):
        facts = read_json(_facts(path)) if _facts(path).exists() else {}
        numbers = range(count, count + facts.get("texts", 0))
        check_digest(directory / path.name, examples, numbers, facts.get("digest"))
        with damaged_is_one_line(directory / path.name):
            shards.append(np.load(path, mmap_mode="r"))
        count = numbers.stop
    check_count(directory, examples, count)
    return tuple(shards)


def _facts(shard: Path) -> Path:
    """Return the file that says which texts a shard, finished or not, holds."""
    return shard.with_name(shard.name.partition(".")[0] + ".json")
