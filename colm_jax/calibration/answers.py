"""Greedy answers at falling thresholds, where only what changes is decoded again.

At two thresholds an answer is the same unless some step of it has p_defer between them: whoever wrote each token at
the first writes it at the second too.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from colm_jax.data.records import Example, Examples
from colm_jax.models.gate import p_defer
from colm_jax.scoring import score_examples
from colm_jax.team import CoLM, Generation

# A step is taken to lie between two thresholds a little before it does: a batch of another shape may round otherwise.
_ROUNDING = 1e-6
# The step that ends a text is no part of the answer; its p_defer is read off a scoring pass, which rounds otherwise.
_ROUNDING_OF_END = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}

_FEWEST = 8  # answers decoded together: each smaller batch would be a program of its own to compile


class Answers:
    """The team's answers to some prompts; ask for thresholds from high to low."""

    def __init__(self, team: CoLM, prompts: Sequence[dict[str, Any]], max_new_tokens: int, batch_size: int = 32):
        """Decodes nothing yet."""
        self._team, self._prompts = team, list(prompts)
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._at: float | None = None
        self._answers: dict[int, Generation] = {}
        self._ends: dict[int, float] = {}  # p_defer of the step that ended the text, of those that ended by themselves
        self.decoded = 0  # answers
        self.reused = 0

    def at(self, threshold: float) -> list[Generation]:
        """The answers at this threshold.

        Those that are reused keep the threshold that they were decoded at in their `threshold`.
        """
        before = self._at
        if before is not None and threshold > before:
            raise ValueError(f"thresholds must fall: {threshold} after {before}")
        everyone = range(len(self._prompts))
        if threshold == before:
            return [self._answers[i] for i in everyone]
        changed = [i for i in everyone if before is None or self._changes(i, before, threshold)]
        if changed:
            same = sorted(set(everyone) - set(changed))
            changed = sorted([*changed, *same[: max(0, _FEWEST - len(changed))]])
            found = self._team.generate(
                [self._prompts[i] for i in changed],
                threshold=threshold,
                max_new_tokens=self._max_new_tokens,
                batch_size=self._batch_size,
            )
            self._answers |= dict(zip(changed, found))
            self._read_ends(changed)
        self.decoded += len(changed)
        self.reused += len(self._prompts) - len(changed)
        self._at = threshold
        return [self._answers[i] for i in everyone]

    def _changes(self, i: int, before: float, threshold: float) -> bool:
        """Whether answer i, known at `before`, may be another one at the lower `threshold`."""
        rates = np.array(self._answers[i].p_defer)
        if ((rates > threshold - _ROUNDING) & (rates <= before + _ROUNDING)).any():
            return True
        rounding = _ROUNDING_OF_END[jnp.dtype(self._team.base.dtype).name]
        return i in self._ends and threshold - rounding < self._ends[i] <= before + rounding

    def _read_ends(self, numbers: Sequence[int]) -> None:
        """Notes p_defer at the end of those texts that ended by themselves."""
        for i in numbers:
            self._ends.pop(i, None)
        ended = [i for i in numbers if self._answers[i].finish_reason == "eos"]
        if not ended:
            return
        assert self._team.gate is not None  # strategy defer needs one
        eos = self._team.tokenizer.eos_id  # whichever ended it: only what stands before is read
        texts = [[*self._answers[i].prompt_ids, *self._answers[i].tokens, eos] for i in ended]
        items = tuple(Example(np.array(ids, np.int32), np.ones(len(ids), bool)) for ids in texts)
        scores = score_examples(self._team.base, Examples(items, 0), self._team.allowed, self._team.gate)
        assert scores.gate_logits is not None  # there is a gate
        rates = p_defer(jnp.asarray(np.stack([logits[-1] for logits in scores.gate_logits])))
        self._ends |= {i: float(rate) for i, rate in zip(ended, np.asarray(rates))}
