"""Scores of units from scores of tokens, and their places in arrays about the base's tokens.

A unit's score is A_k = L_k + log S_k − log S_(k−1): L_k the sum of its tokens' log-probabilities, S_k the opening mass
after it, the probability that a unit ends there. So A is normalised over units; L alone would count "playing" under
"play". log S is 0 where the text begins (after a prompt, or at the first token of a text), and where nothing follows,
because the text was cut. An end of text is a unit of the base alone.

All models of a team have the same units that count. In arrays that are aligned with the base's tokens (T entries, entry
t about tokens[t + 1]) a unit's value is at the entry of its first token; all other entries are 0 and do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from colm_jax.data.records import Example
from colm_jax.scoring.passes import NO_PASSES, PassCounts

# Log-probability under an expert of what it never writes, the end of a text. Finite, so that sums and JSON stay so; its
# exponential is 0 in float32.
NEVER = -1e4


@dataclass(frozen=True)
class UnitScores:
    """A model's scores of one text of N units that count."""

    log_prob: Float[np.ndarray, "N"]  # of each unit, normalised over units where the opening mass is known, nats
    is_argmax: Bool[np.ndarray, "N"]  # the model's own greedy choice is this unit


class ScoredUnits(list[UnitScores]):
    """The scores of several texts, in order; `counts` is that of the passes that gave them."""

    def __init__(self, items: Sequence[UnitScores], counts: PassCounts = NO_PASSES):
        super().__init__(items)
        self.counts = counts


def unit_borders(example: Example) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Return the first token of each unit that counts, and the first token after it."""
    starts = np.flatnonzero(example.counted)
    starts = starts[starts > 0]  # nothing predicts the first token
    if example.starts is None:
        return starts, starts + 1
    ends = np.flatnonzero(example.starts | ~example.targets)  # where another unit, or what does not count, begins
    return starts, np.append(ends, len(example.ids))[np.searchsorted(ends, starts, side="right")]


def unit_scores(
    example: Example,
    log_prob: Float[np.ndarray, "T"],
    is_argmax: Bool[np.ndarray, "T"],
    log_opening: Float[np.ndarray, "T"] | None,
) -> UnitScores:
    """Return the scores of a text's units from those of its tokens.

    Args:
      example: the text as the model reads it.
      log_prob: of each token, its first one left out.
      is_argmax: each token is the argmax.
      log_opening: log S at each position; None: S is 1 (every token is a unit).
    """
    starts, ends = unit_borders(example)
    if example.starts is None:
        return UnitScores(log_prob[starts - 1], is_argmax[starts - 1])
    sums = np.array([log_prob[a - 1 : b - 1].sum(dtype=np.float64) for a, b in zip(starts, ends)])
    if log_opening is not None:
        known = np.append(log_opening, 0.0).astype(np.float64)  # after the last token nothing follows
        first = int(np.argmax(example.starts))
        sums = sums + known[ends - 1] - np.where(starts == first, 0.0, known[starts - 1])
    right = [bool(is_argmax[a - 1 : b - 1].all()) for a, b in zip(starts, ends)]
    return UnitScores(sums.astype(np.float32), np.array(right, bool))


def in_layout(base: Example, scores: UnitScores) -> tuple[Float[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
    """Return the scores of a text's units in arrays that are aligned with the base's tokens.

    Where the base has one unit more, it is the end of the text: an expert never writes it.

    Raises:
      ValueError: another number of units.
    """
    places = np.flatnonzero(base.counted[1:])
    missing = len(places) - len(scores.log_prob)
    if missing not in (0, 1) or (missing and base.starts is None):
        raise ValueError(f"{len(scores.log_prob)} scores for a text of {len(places)} units")
    log_prob, is_argmax = np.zeros(len(base.ids) - 1, np.float32), np.zeros(len(base.ids) - 1, bool)
    log_prob[places] = np.append(scores.log_prob, [NEVER] * missing)
    is_argmax[places] = np.append(scores.is_argmax, [False] * missing)
    return log_prob, is_argmax
