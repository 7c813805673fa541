"""Learn on dev answers where answers go wrong: the risk at each token, of which the few largest are marked.

A task's grades say which answers are wrong, and not where. As in the paper, where no label says when to defer, the
place is latent: with r_t the risk at token t, P(an answer is wrong) = 1 − ∏ (1 − r_t), a noisy-or (Pearl 1988), and r_t
is a logistic model of what the loop knew at the token (`decoding.risk.EVIDENCE`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from colm_jax.calibration.figures import calibration_error
from colm_jax.decoding.risk import Risk, continues
from colm_jax.evaluation.marks import rank_area

FEWEST = 5  # wrong answers, and right ones, from which a risk is learned
MOST_MARKS = 1.0  # per dev answer, on average
_FOLDS = 5
_RIDGE = 1.0  # of the squared weights, in nats; keeps the fit of separable answers finite
_SMALLEST, _LARGEST = -20.0, 20.0  # log-odds


@dataclass(frozen=True)
class Graded:
    """A decoded answer."""

    evidence: Float[np.ndarray, "N E"]
    grade: float  # from 0, wrong, to 1, right


def too_few(prompts: int) -> str | None:
    """Return why so few dev prompts cannot teach a risk, however they are answered; None: they might."""
    if prompts >= 2 * FEWEST:
        return None
    return f"there are {prompts} dev prompts; at least {2 * FEWEST} are needed, of which {FEWEST} are answered wrong"


def learn_risk(answers: Sequence[Graded]) -> tuple[Risk | None, dict[str, Any]]:
    """Learn the risk from graded answers.

    Args:
      answers: decoded with their evidence; of empty ones nothing is learned.

    Returns:
      The risk, or None where there was nothing to learn from; and a summary: "answers", "wrong", "why" (why there is
      none, else None), and with a risk "marks", of an answer here, and measured on answers that the fit has not seen
      (5 folds): "auroc" of the risk that an answer is wrong, "ece" and "brier" of its calibration.
    """
    answers = [answer for answer in answers if len(answer.evidence)]
    wrong = sum(answer.grade < 0.5 for answer in answers)
    summary: dict[str, Any] = {"answers": len(answers), "wrong": wrong, "why": None}
    if min(wrong, len(answers) - wrong) < FEWEST:
        why = f"{wrong} of {len(answers)} dev answers are wrong; {FEWEST} wrong and {FEWEST} right ones are needed"
        return None, summary | {"why": why}
    answers = sorted(answers, key=lambda answer: answer.grade)  # each fold has its share of wrong ones
    fitted = _fit(answers)
    risk = replace(fitted, mark_above=_limit(fitted, answers))
    held_out = np.zeros(len(answers))
    for fold in range(_FOLDS):
        fitted = _fit([answer for i, answer in enumerate(answers) if i % _FOLDS != fold])
        for i in range(fold, len(answers), _FOLDS):
            held_out[i] = fitted.of_answer(answers[i].evidence)
    is_wrong = np.array([answer.grade < 0.5 for answer in answers])
    marked = [(risk.of(a.evidence) > risk.mark_above)[~continues(a.evidence)].sum() for a in answers]
    figures = calibration_error(held_out, is_wrong)
    return risk, summary | {
        "auroc": rank_area(held_out.tolist(), is_wrong.tolist()),
        "ece": figures["ece"],
        "brier": figures["brier"],
        "marks": float(np.mean(marked)),
    }


def _fit(answers: Sequence[Graded]) -> Risk:
    """Return the risk of the largest penalised likelihood of the grades; it marks nothing."""
    rows = [answer.evidence[~continues(answer.evidence)] for answer in answers]
    columns = np.concatenate(rows).astype(np.float64)
    known = [column[~np.isnan(column)] for column in columns.T]
    mean = tuple(float(column.mean()) if len(column) else 0.0 for column in known)
    scale = tuple(float(column.std()) or 1.0 if len(column) else 1.0 for column in known)
    low = tuple(float(column.min()) if len(column) else 0.0 for column in known)
    high = tuple(float(column.max()) if len(column) else 0.0 for column in known)
    empty = Risk(mean, scale, low, high, (0.0,) * len(mean), 0.0, 1.0)
    inputs = empty.inputs(columns)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])[:-1]])
    grades = np.array([answer.grade for answer in answers])
    lengths = np.array([len(row) for row in rows])

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        odds = np.clip(inputs @ weights + bias, _SMALLEST, _LARGEST)
        sure = np.add.reduceat(-np.logaddexp(0, odds), starts)  # log P(right) of each answer: Σ log(1 − r)
        wrong = np.log(-np.expm1(np.minimum(sure, -1e-12)))
        loss = -(grades * sure + (1 - grades) * wrong).sum() + _RIDGE * (weights**2).sum()
        # d log P(right) / d odds_t = −r_t; d log P(wrong) = r_t · P(right) / P(wrong)
        slope = -grades + (1 - grades) * np.exp(sure - wrong)
        by_odds = -np.repeat(slope, lengths) / (1 + np.exp(-odds))
        gradient = inputs.T @ by_odds + 2 * _RIDGE * weights
        return float(loss), np.append(gradient, by_odds.sum())

    share = np.clip(1 - grades.mean(), 1e-3, 1 - 1e-3) / lengths.mean()
    start = np.append(np.zeros(inputs.shape[1]), np.log(share / (1 - share)))
    found = minimize(objective, start, jac=True, method="L-BFGS-B").x
    return replace(empty, weights=tuple(map(float, found[:-1])), bias=float(found[-1]))


def _limit(risk: Risk, answers: Sequence[Graded]) -> float:
    """Return the limit above which tokens are marked.

    Of the limits that mark at most MOST_MARKS tokens an answer, it is the one with which "a token is marked" says best
    whether an answer is wrong (Youden's index); of equal ones the highest.
    """
    highest = np.array([risk.of(answer.evidence).max() for answer in answers])
    own = np.concatenate([risk.of(a.evidence)[~continues(a.evidence)] for a in answers])
    wrong = np.array([answer.grade < 0.5 for answer in answers])
    values = np.unique(highest)[::-1]
    best, chosen = 0.0, float(values[0])
    for value in values:
        marked = highest >= value
        if (own >= value).sum() > MOST_MARKS * len(answers):
            break
        index = marked[wrong].mean() - marked[~wrong].mean()
        if index > best + 1e-12:
            best, chosen = float(index), float(value + own[own < value].max(initial=0.0)) / 2
    return chosen
