"""The base's final hidden states at every position that counts, on disk: what the gate is fitted to.

They depend on the base and the texts alone, so that they outlive an exchange of experts. Shards are plain .npy files,
to be mapped into memory: writing holds one batch, reading what is asked for. A position takes 4 · D bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from colm_jax.data.batches import Batch
from colm_jax.data.records import Examples
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.scoring.scorer import Progress, batches, readable, spread_of, write_shards


@jax.jit(static_argnames=("graph", "spread"))
def _hidden_batch(graph, state, tokens: Int[Array, "B T+1"], spread) -> Float[Array, "B T D"]:
    hidden, _ = nnx.merge(graph, state)(tokens[:, :-1], spread=spread)
    return readable(hidden.astype(np.float32), spread)


def hidden_to_directory(
    decoder: Decoder, examples: Examples, directory: Path, progress: Progress = lambda done: None
) -> None:
    """Final hidden states into `directory` as shard-NNNNN.npy, float32 [n, D]; shards already there are kept.

    Row by row they are the states that predict the tokens that count in the loss, in the order of the texts.
    """
    graph, state = nnx.split(decoder)
    spread = spread_of(decoder)

    def counted(batch: Batch) -> int:
        return int(batch.mask.sum())

    def write(path: Path | None, numbers: Sequence[int]) -> None:
        shape = (sum(counted(batch) for _, batch in batches(examples, numbers, spread)), decoder.config.width)
        shard = None if path is None else np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        filled = 0
        for rows, batch in batches(examples, numbers, spread):
            hidden = _hidden_batch(graph, state, batch.tokens, spread)
            if shard is not None:
                shard[filled : filled + counted(batch)] = np.asarray(hidden)[batch.mask]
            filled += counted(batch)
            progress(rows[-1] + 1)
        if shard is not None:
            shard.flush()

    write_shards(examples, directory, ".npy", write, progress)


def open_hidden(directory: Path, examples: Examples) -> tuple[Float[np.ndarray, "n D"], ...]:
    """The shards that `hidden_to_directory` wrote for these examples, mapped into memory, not read.

    Raises:
      UserError: they hold another number of positions than the data, so they were made from other data.
    """
    shards = tuple(np.load(path, mmap_mode="r") for path in sorted(directory.glob("shard-?????.npy")))
    if sum(map(len, shards)) != examples.tokens:
        raise UserError(f"{directory}: these hidden states belong to other data or another tokenizer; delete them")
    return shards
