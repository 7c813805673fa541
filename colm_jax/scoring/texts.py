"""Texts with their scores under all models of a team: what `CoLM.score` returns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from colm_jax.scoring.passes import PassCounts


@dataclass(frozen=True)
class Scored:
    """One scored text; entry t is about tokens[t + 1].

    Where units are spans (`data.units`), experts have scores by spans: those that count, and an end of text as the last
    one, which an expert never writes (`scoring.NEVER`).

    Example:
      >>> import numpy as np
      >>> from colm_jax import CoLM
      >>> team = CoLM.from_pretrained(base="RUN/team")
      >>> (scored,) = team.score([{"prompt": "two and two is", "completion": " four"}])
      >>> scored.tokens.size == scored.base_log_prob.size + 1
      True
      >>> expected_rate = (1 / (1 + np.exp(-scored.gate_logits[scored.mask, 0]))).mean()
    """

    tokens: np.ndarray  # [T+1] int32
    mask: np.ndarray  # [T] bool: the token counts in the loss
    base_log_prob: np.ndarray  # [T] float32, nats
    expert_log_probs: np.ndarray  # [T, M]; by spans [N, M]
    gate_logits: np.ndarray | None  # [T, M]; None without a gate
    # [T, M+1] bool, base first: the model's own greedy choice is the text's token; by spans [N, M+1]
    is_argmax: np.ndarray
    spans: np.ndarray | None = None  # [N] int: the entries at which spans begin; None: every token is a unit
    span_log_probs: np.ndarray | None = None  # [N, M+1] float32: scores of spans, base first
    has_text: np.ndarray | None = None  # [N] bool: all spans but an end of text; None: every unit counts as text
    bytes: int | None = None  # of UTF-8 that count in the loss; None: not known

    @property
    def units(self) -> np.ndarray:
        """The entries at which the units begin that count in the loss, [N] int."""
        return np.flatnonzero(self.mask) if self.spans is None else self.spans

    @property
    def unit_log_probs(self) -> np.ndarray:
        """Scores of the units that count, base first, [N, M+1] float32."""
        if self.span_log_probs is not None:
            return self.span_log_probs
        return np.column_stack([self.base_log_prob, self.expert_log_probs])[self.mask]

    @property
    def unit_is_argmax(self) -> np.ndarray:
        """`is_argmax` of the units that count, [N, M+1]."""
        return self.is_argmax[self.mask] if self.spans is None else self.is_argmax

    @property
    def unit_gate_logits(self) -> np.ndarray | None:
        """The gate's logits where units that count begin, [N, M]."""
        return None if self.gate_logits is None else self.gate_logits[self.units]

    @property
    def unit_has_text(self) -> np.ndarray:
        """Whether each unit that counts adds to the text, [N] bool."""
        return np.ones(len(self.units), bool) if self.has_text is None else self.has_text


class ScoredTexts(list[Scored]):
    """The scores of several texts, in order; `cut` says how many were longer than the context and were cut to it.

    `counts` is that of all models' passes.

    Example:
      >>> from colm_jax import CoLM
      >>> team = CoLM.from_pretrained(base="RUN/team")
      >>> texts = team.score([{"text": "once upon a time"}, {"text": "the end"}])
      >>> len(texts), texts.cut
      (2, 0)
    """

    def __init__(self, items: Sequence[Scored], cut: int, counts: PassCounts):
        super().__init__(items)
        self.cut, self.counts = cut, counts
