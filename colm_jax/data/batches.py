"""Examples to padded batches of one shape, shuffled by seed and indexed by step (grain)."""

from collections.abc import Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np
from jaxtyping import Bool, Int

from colm_jax.data.records import Example


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Right-padded texts. `mask[b, t]` speaks of the token at t + 1, which position t predicts."""

    tokens: Int[np.ndarray, "B T+1"]
    mask: Bool[np.ndarray, "B T"]
    rows: Int[np.ndarray, "B"]  # index of the example; -1 for a row that only fills the batch


def padded_length(examples: Sequence[Example], multiple: int = 32) -> int:
    """Tokens per row: the longest text's, rounded up so that near lengths share one compiled program."""
    longest = max(len(example.ids) for example in examples)
    return -(-longest // multiple) * multiple


def collate(examples: Sequence[Example], rows: Sequence[int], batch_size: int, length: int) -> Batch:
    """The named examples as one batch of fixed shape."""
    tokens = np.zeros((batch_size, length), np.int32)
    mask = np.zeros((batch_size, length - 1), bool)
    for b, row in enumerate(rows):
        example = examples[row]
        tokens[b, : len(example.ids)] = example.ids
        mask[b, : len(example.ids) - 1] = example.targets[1:]
    padded = np.full(batch_size, -1, np.int64)
    padded[: len(rows)] = rows
    return Batch(tokens, mask, padded)


def in_order(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Row numbers of batches that read the examples once, in file order."""
    return [list(range(i, min(i + batch_size, len(examples)))) for i in range(0, len(examples), batch_size)]


def shuffled(count: int, batch_size: int, epochs: int, seed: int) -> grain.MapDataset:
    """Row numbers of training batches: element i is the batch of step i, so a step number is all a restart needs.

    Each epoch has an order of its own. The last batch may be short.
    """
    rows = grain.MapDataset.range(count).seed(seed).shuffle().repeat(epochs)
    return rows.batch(batch_size, drop_remainder=False)
