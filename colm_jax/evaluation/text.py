"""Evaluation on text: nats per unit of each model and of the team, and the deferral rate.

Where base and experts share a tokenizer, every token is a unit; else units are spans, and an end of text is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from colm_jax.models.gate import p_defer
from colm_jax.objectives import marginal_nll
from colm_jax.scoring.texts import Scored


@dataclass(frozen=True)
class TextScores:
    """Means over all units of all texts that count (sums are divided once), in nats per unit."""

    tokens: int  # of the base, that count
    base: float
    experts: tuple[float, ...]
    uniform: float  # the uniform mixture, 1 / (M + 1) each
    oracle: float  # the best model at each unit
    team: float | None  # the marginal under the gate; None without a gate
    deferral_rate: float | None  # mean p_defer
    units: int


def counted(scored: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return log-probabilities [N, M+1] (base first), gate logits [N, M] and p_defer [N] of the units that count.

    Without a gate, the logits are [N, 0] and p_defer is None.
    """
    models = np.concatenate([s.unit_log_probs[s.unit_has_text] for s in scored])
    if scored[0].gate_logits is None:
        return models, np.zeros((len(models), 0), np.float32), None
    known = [(s.unit_gate_logits, s.unit_has_text) for s in scored]
    logits = np.concatenate([logits[kept] for logits, kept in known if logits is not None])
    return models, logits, np.asarray(p_defer(jnp.asarray(logits)))


def gate_logits_of(scored: Sequence[Scored]) -> Float[np.ndarray, "N M"]:
    """Return the gate's logits where units that count begin, float32; the team must have a gate."""
    return np.concatenate([found for s in scored if (found := s.unit_gate_logits) is not None])


def evaluate_text(scored: Sequence[Scored]) -> TextScores:
    """Compute the scores of a text evaluation from the results of `CoLM.score`."""
    models, logits, rates = counted(scored)
    count = len(models)
    team = None
    if rates is not None:
        arguments = (logits, models[:, 0], models[:, 1:], np.ones(count, bool))
        total, _ = marginal_nll(*(jnp.asarray(a)[None] for a in arguments))
        team = float(total) / count
    wide = models.astype(np.float64)
    uniform = np.asarray(jax.nn.logsumexp(jnp.asarray(models), axis=1), np.float64) - np.log(models.shape[1])
    return TextScores(
        tokens=sum(int(s.mask.sum()) for s in scored),
        base=-float(wide[:, 0].mean()),
        experts=tuple(-float(column.mean()) for column in wide[:, 1:].T),
        uniform=-float(uniform.mean()),
        oracle=-float(wide.max(axis=1).mean()),
        team=team,
        deferral_rate=None if rates is None else float(rates.mean()),
        units=count,
    )
