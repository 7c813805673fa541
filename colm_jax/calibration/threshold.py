"""The threshold, chosen on a dev set: by a task's metric over decoded answers, or by next-token accuracy on text.

The grid is the quantiles of p_defer on the dev texts, so that its points lie at known deferral rates.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from colm_jax.data.records import Examples
from colm_jax.errors import UserError
from colm_jax.evaluation.tasks import reference_of, score_answers
from colm_jax.evaluation.text import counted
from colm_jax.team import CoLM


@dataclass(frozen=True)
class Calibration:
    """Which thresholds are tried."""

    rates: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    max_new_tokens: int = 96  # of dev answers, where a task is given

    def __post_init__(self):
        """Rejects settings that cannot be meant."""
        if not self.rates or not all(0 < rate < 1 for rate in self.rates):
            raise UserError(f"calibration: rates must lie between 0 and 1, got {self.rates}")


@dataclass(frozen=True)
class Point:
    """One threshold and what it gives on the dev set."""

    threshold: float
    deferral_rate: float  # share of tokens with p_defer above the threshold
    score: float


def prompt_of(record: dict[str, Any]) -> dict[str, Any] | None:
    """The prompt of a data line that has one: its prompt, or its messages up to the assistant's last."""
    if "prompt" in record:
        return {"prompt": record["prompt"]}
    if record.get("messages") and record["messages"][-1].get("role") == "assistant":
        return {"messages": record["messages"][:-1]}
    return None


def calibrate(
    team: CoLM,
    records: Sequence[tuple[str, dict[str, Any]]],
    examples: Examples,
    task: str | None,
    settings: Calibration,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Chooses η; the higher threshold (the cheaper team) wins a tie.

    Args:
      team: with a gate.
      records: the dev file's lines with their places.
      examples: the same, tokenised.
      task: decode the prompts at every threshold and take this task's accuracy; None: next-token accuracy of the
        texts' own tokens, where whoever writes at that threshold predicts it.
      settings: the grid.
      progress: called with thresholds done, and their number.

    Returns:
      "threshold", "metric", "score", "thresholds" (deferral rate -> η), "curve".

    Raises:
      UserError: no gate, or a task and lines without prompts.
    """
    if team.gate is None:
        raise UserError("calibration needs a base with a gate; train one first (colm train)")
    scored = team.score_examples(examples)
    _, logits, rates = counted(scored)
    assert rates is not None  # the team has a gate
    thresholds = {rate: float(np.quantile(rates, 1 - rate)) for rate in settings.rates}
    grid = sorted({1.0, 0.0, *thresholds.values()}, reverse=True)
    curve = []
    if task is None:
        metric = "next_token_accuracy"
        right = np.concatenate([s.is_argmax[s.mask] for s in scored])
        by_expert = np.take_along_axis(right[:, 1:], logits.argmax(axis=1)[:, None], axis=1)[:, 0]
        for i, eta in enumerate(grid):
            deferred = rates > eta
            curve.append(Point(eta, float(deferred.mean()), float(np.where(deferred, by_expert, right[:, 0]).mean())))
            progress(i + 1, len(grid))
    else:
        metric = task
        prompts = [prompt_of(record) for _, record in records]
        missing = [where for (where, _), prompt in zip(records, prompts) if prompt is None]
        if missing:
            raise UserError(f"{missing[0]}: a task needs lines with a prompt and its answer")
        references = [reference_of(record, where) for where, record in records]
        for i, eta in enumerate(grid):
            answers = team.generate(
                [p for p in prompts if p is not None],
                threshold=eta,
                max_new_tokens=settings.max_new_tokens,
                batch_size=32,
            )
            score = score_answers(
                task,
                [a.text for a in answers],
                references,
                [a.sources for a in answers],
                [a.expert_calls for a in answers],
            )
            curve.append(Point(eta, score.deferral_rate, score.accuracy))
            progress(i + 1, len(grid))
    best = max(curve, key=lambda point: (point.score, point.threshold))
    return {
        "threshold": best.threshold,
        "metric": metric,
        "score": best.score,
        "deferral_rate": best.deferral_rate,
        "thresholds": {str(rate): eta for rate, eta in thresholds.items()},
        "curve": [asdict(point) for point in curve],
    }
