"""Greedy answers at falling thresholds; only answers that change are decoded again.

An answer is the same at two thresholds unless p_defer of one of its steps is between them: otherwise every token has
the same source at both.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from colm_jax.data.records import Example, Examples
from colm_jax.models.gate import p_defer
from colm_jax.scoring import score_examples
from colm_jax.scoring.passes import NO_PASSES
from colm_jax.team import CoLM, Generation

# Margin of the comparison with a threshold: a batch of another shape may round differently.
_ROUNDING = 1e-6
# The step that ends a text is not part of the answer; its p_defer comes from a scoring pass, which rounds differently.
_ROUNDING_OF_END = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}

_FEWEST = 8  # answers decoded together: each smaller batch size would compile another program


class Answers:
    """The team's answers to a list of prompts, at thresholds requested from high to low."""

    def __init__(self, team: CoLM, prompts: Sequence[dict[str, Any]], max_new_tokens: int, batch_size: int = 32):
        """Store the arguments; decoding starts with the first call of `at`."""
        self._team, self._prompts = team, list(prompts)
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._at: float | None = None
        self._answers: dict[int, Generation] = {}
        self._ends: dict[int, float] = {}  # answer -> p_defer of the step that wrote its end-of-text token
        self.decoded = 0  # answers
        self.reused = 0
        self.counts = NO_PASSES  # of the scoring passes over answers

    def at(self, threshold: float) -> list[Generation]:
        """Return the answers at this threshold.

        A reused answer keeps the threshold at which it was decoded in its `threshold`.
        """
        before = self._at
        if before is not None and threshold > before:
            raise ValueError(f"thresholds must fall: {threshold} after {before}")
        numbers = range(len(self._prompts))
        if threshold == before:
            return [self._answers[i] for i in numbers]
        changed = [i for i in numbers if before is None or self._changes(i, before, threshold)]
        if changed:
            same = sorted(set(numbers) - set(changed))
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
        return [self._answers[i] for i in numbers]

    def _changes(self, i: int, before: float, threshold: float) -> bool:
        """Return whether answer i, decoded for `before`, may change at the lower `threshold`."""
        rates = np.array(self._answers[i].p_defer)
        if ((rates > threshold - _ROUNDING) & (rates <= before + _ROUNDING)).any():
            return True
        rounding = _ROUNDING_OF_END[jnp.dtype(self._team.base.dtype).name]
        return i in self._ends and bool(threshold - rounding < self._ends[i] <= before + rounding)

    def _read_ends(self, numbers: Sequence[int]) -> None:
        """Store p_defer at the end-of-text token of each answer that has one."""
        for i in numbers:
            self._ends.pop(i, None)
        ended = [i for i in numbers if self._answers[i].finish_reason == "eos"]
        if not ended:
            return
        assert self._team.gate is not None  # required by strategy defer
        eos = self._team.tokenizer.eos_id  # any end-of-text id will do: the gate reads the tokens before it
        texts = [[*self._answers[i].prompt_ids, *self._answers[i].tokens, eos] for i in ended]
        items = tuple(Example(np.array(ids, np.int32), np.ones(len(ids), bool)) for ids in texts)
        scores = score_examples(self._team.base, Examples(items, 0), self._team.allowed, self._team.gate)
        assert scores.gate_logits is not None  # there is a gate
        self.counts += scores.counts
        rates = p_defer(jnp.asarray(np.stack([logits[-1] for logits in scores.gate_logits])))
        self._ends |= {i: float(rate) for i, rate in zip(ended, np.asarray(rates))}
