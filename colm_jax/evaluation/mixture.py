"""The best constant mixture of a team's models, and bits per byte, which compare models of any tokenizers.

A constant mixture has one weight a model everywhere: what a gate adds is its distance from the best of them.
"""

from collections.abc import Sequence
from math import log

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from colm_jax.scoring.texts import Scored

_ROUNDS, _GAIN = 2000, 1e-9  # of EM, at most; nats per unit below which it ends


def fit_mixture(log_probs: Float[np.ndarray, "N W"]) -> Float[np.ndarray, "W"]:
    """Return the weights of the models that give N units the highest likelihood, float64, by EM (a concave problem)."""
    wide = log_probs.astype(np.float64)
    weights = np.full(wide.shape[1], 1 / wide.shape[1])
    p = np.exp(wide - wide.max(axis=1, keepdims=True))
    before = -np.inf
    for _ in range(_ROUNDS):
        mixed = p @ weights
        weights = weights * (p / mixed[:, None]).mean(axis=0)
        if (now := float(np.log(mixed).mean())) - before < _GAIN:
            break
        before = now
    return weights / weights.sum()


def mixture_of(scored: Sequence[Scored]) -> list[float]:
    """Return the weights of the best constant mixture over the units of texts, base first."""
    found = np.concatenate([s.unit_log_probs[s.unit_has_text] for s in scored])
    return fit_mixture(found).tolist()


def bits_per_byte(scored: Sequence[Scored], mixture: Sequence[float] | None) -> dict[str, float | None]:
    """Return bits per byte of UTF-8 of each model, the constant mixture, the per-unit oracle and the team.

    They are over the units that count and add text: an end of text among spans is none. "team" is None without a gate.

    Args:
      scored: the texts.
      mixture: weights of the constant mixture, base first, chosen on other texts; None: its entry is None.
    """
    models = np.concatenate([s.unit_log_probs[s.unit_has_text] for s in scored]).astype(np.float64)
    size = sum(s.bytes or 0 for s in scored)

    def bits(log_prob: Float[np.ndarray, "N"]) -> float | None:
        return -float(log_prob.sum()) / log(2) / size if size else None

    def mixed(log_weights: Float[np.ndarray, "... W"]) -> float | None:
        return bits(logsumexp(models + log_weights, axis=1))

    found = {"base": bits(models[:, 0])}
    found |= {f"expert-{m}": bits(models[:, m]) for m in range(1, models.shape[1])}
    with np.errstate(divide="ignore"):  # a weight of 0
        found["mixture"] = None if mixture is None else mixed(np.log(np.asarray(mixture)))
    found["oracle"] = bits(models.max(axis=1))
    logits = [s.unit_gate_logits for s in scored]
    found["team"] = None
    if known := [x[s.unit_has_text] for x, s in zip(logits, scored) if x is not None]:
        with_base = np.pad(np.concatenate(known).astype(np.float64), ((0, 0), (1, 0)))
        found["team"] = mixed(with_base - logsumexp(with_base, axis=1, keepdims=True))
    return found
