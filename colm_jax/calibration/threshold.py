"""The threshold, chosen on a dev set: by a task's metric over decoded answers, or by next-token accuracy on text.

The grid consists of quantiles of p_defer, so that its points have known deferral rates: on the dev texts or, as in the
original, on the base's own answers to the dev prompts. Evenly spaced points fill wide gaps between quantiles.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Shaped

from colm_jax.calibration.answers import Answers
from colm_jax.calibration.figures import area, reliability, roc
from colm_jax.console import Progress
from colm_jax.data.records import Examples, Records
from colm_jax.data.token_units import TokenUnits
from colm_jax.data.units import EXPERT_KEYS
from colm_jax.decoding.requests import Generation
from colm_jax.errors import UserError
from colm_jax.evaluation.mixture import mixture_of
from colm_jax.evaluation.tasks import find_task, score_answers
from colm_jax.evaluation.text import gate_logits_of
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import p_defer
from colm_jax.scoring import PassCounts, greedy_choices
from colm_jax.scoring.passes import NO_PASSES
from colm_jax.scoring.texts import Scored
from colm_jax.settings.calibration import Calibration
from colm_jax.team import CoLM

_WIDEST = 0.1  # largest gap between neighbouring thresholds of the grid
_SAME_COST = 0.25  # two thresholds cost about the same if their deferral rates differ by at most this share


@dataclass(frozen=True)
class Point:
    """A threshold with its results on the dev set."""

    threshold: float
    deferral_rate: float  # share of tokens with p_defer above the threshold
    score: float


def prompt_of(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return a data line's "prompt", or its messages (and tools) before the assistant's last; None without a prompt.

    With the experts' own view of it, where the line has one.
    """
    view = {key: record[key] for key in EXPERT_KEYS if record.get(key) is not None}
    if "prompt" in record:
        return {"prompt": record["prompt"], **view}
    if not isinstance(record.get("messages"), list):
        return None
    *messages, last = record["messages"] or [None]
    if messages and isinstance(last, dict) and last.get("role") == "assistant":
        return {"messages": messages, "tools": record.get("tools"), **view}
    return None


def source_of(records: Records, settings: Calibration, resident: bool) -> str:
    """Return where the quantiles are taken, decided: "texts" or "generations".

    Quantiles on texts miss the rates of decoded answers by far where units are spans; so there the default is the
    base's own answers, if all lines have prompts.
    """
    if settings.source is not None:
        return settings.source
    return "texts" if resident or any(prompt_of(record) is None for _, record in records) else "generations"


def decoded_prompts(records: Records, task: str | None, source: str) -> list[dict[str, Any]]:
    """Return the prompts that calibration decodes: every line's for a task or source "generations", otherwise none.

    Raises:
      UserError: a line without a prompt, if prompts are decoded.
    """
    if task is None and source != "generations":
        return []
    prompts = [prompt_of(record) for _, record in records]
    missing = [where for (where, _), prompt in zip(records, prompts) if prompt is None]
    if missing:
        raise UserError(f"{missing[0]}: a task, and generations as source, need lines with a prompt and its answer")
    return [prompt for prompt in prompts if prompt is not None]


def references_of(records: Records, task: str | None) -> list[Any]:
    """Return the reference of each line by which a task grades its answer; an empty list without a task.

    Raises:
      UserError: a line without a reference.
    """
    return [] if task is None else [find_task(task).reference(record, where) for where, record in records]


def _right(scored: Sequence[Scored]) -> tuple[Bool[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """Return whether the base, and the most probable expert, predict each unit of the text that counts."""
    base = [s.unit_is_argmax[:, 0] for s in scored]
    return np.concatenate(base), np.concatenate([_chosen_expert(s.unit_is_argmax[:, 1:], s) for s in scored])


def _chosen_expert(values: Shaped[np.ndarray, "N M"], scored: Scored) -> Shaped[np.ndarray, "N"]:
    """Return from the values at a text's units the value of each unit's most probable expert."""
    logits = scored.unit_gate_logits
    assert logits is not None  # the team has a gate
    return np.take_along_axis(values, logits.argmax(axis=1)[:, None], axis=1)[:, 0]


def _differs_on_texts(
    team: CoLM, examples: Examples, scored: Sequence[Scored]
) -> tuple[Bool[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """Return whether the greedy units of base and expert differ, at each unit of the dev texts that counts, and where
    that is known.

    Experts that read the base's tokens are asked once more. Of others only scores are known: of two models, one that is
    right and one that is wrong differ, and two that are right do not.
    """
    decoders = [expert for expert in team.experts if isinstance(expert, Decoder)]
    if len(decoders) < len(team.experts) or any(view is not None for view in examples.views):
        by_base, by_expert = _right(scored)
        return by_base != by_expert, by_base | by_expert
    base, *experts = (greedy_choices(model, examples, team.allowed) for model in (team.base, *decoders))
    differs = [
        _chosen_expert(np.stack(own, -1)[s.mask], s) != first[s.mask] for s, first, *own in zip(scored, base, *experts)
    ]
    return np.concatenate(differs), np.ones(sum(map(len, differs)), bool)


def _answer_record(team: CoLM, prompt: dict[str, Any], answer: Generation) -> dict[str, Any]:
    """Return a written answer as a data line: by its tokens where every token is a unit, else by its text."""
    view = {key: prompt[key] for key in EXPERT_KEYS if key in prompt}
    if isinstance(team.units, TokenUnits):
        ids = answer.prompt_ids + answer.tokens
        return {"input_ids": ids, "labels": [-100] * len(answer.prompt_ids) + answer.tokens, **view}
    if "messages" in prompt:
        last = {"role": "assistant", "content": answer.text}
        return {"messages": [*prompt["messages"], last], "tools": prompt.get("tools"), **view}
    return {"prompt": prompt["prompt"], "completion": answer.text, **view}


def _positions_of_generations(
    team: CoLM, prompts: Sequence[dict[str, Any]], written: Sequence[Generation]
) -> tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"], PassCounts]:
    """Return p_defer at each unit of the base's own answers, and whether the expert's greedy unit differs from it.

    With what scoring the answers took.

    Raises:
      UserError: all answers are empty.
    """
    by_tokens = isinstance(team.units, TokenUnits)
    texts = [(p, a) for p, a in zip(prompts, written, strict=True) if (a.tokens if by_tokens else a.text)]
    if not texts:
        raise UserError("calibration: the base alone writes nothing to the dev prompts; use Calibration.source 'texts'")
    scored = team.score([_answer_record(team, prompt, answer) for prompt, answer in texts])
    differs = ~_right(scored)[1]
    if by_tokens:
        rates = np.concatenate([np.asarray(answer.p_defer, np.float32) for _, answer in texts])
        return rates, differs, scored.counts
    # Read as a text, an answer that reached its limit ends all the same: its end of text is nothing that was written.
    kept = np.concatenate([s.unit_has_text | (a.finish_reason == "eos") for s, (_, a) in zip(scored, texts)])
    return np.asarray(jax.jit(p_defer)(gate_logits_of(scored)))[kept], differs[kept], scored.counts


def fill(thresholds: Iterable[float]) -> list[float]:
    """Return the thresholds with 0, 1 and evenly spaced points in each gap wider than 0.1, from high to low.

    Few values of p_defer are in a wide gap between quantiles, so that few answers are decoded again there.
    """
    known = sorted({1.0, 0.0, *thresholds}, reverse=True)
    grid: list[float] = []
    for high, low in pairwise(known):
        parts = ceil((high - low) / _WIDEST - 1e-6)
        grid += [high - (high - low) * part / parts for part in range(parts)]
    return [*grid, known[-1]]


def choose(curve: Sequence[Point], grades: Sequence[Shaped[np.ndarray, "N"]]) -> tuple[Point, tuple[Point, ...]]:
    """Choose the middle of the thresholds that are as good as the best and cost about the same.

    The best point has the highest score and, at equal scores, the highest threshold. The plateau is the contiguous run
    of points around it whose scores differ from its own by at most one standard error (paired over the grades:
    McNemar's statistic is at most 1) and whose deferral rates differ from its own by at most a quarter. The plateau's
    edges vary between dev sets, its middle less. If no point beats the base alone, the base alone is chosen.

    Args:
      curve: points from high to low thresholds.
      grades: for each point, the grade of every dev problem (or position).

    Returns:
      The point of the plateau nearest to its middle, and the plateau.
    """
    best = max(range(len(curve)), key=lambda i: (curve[i].score, curve[i].threshold))
    rate = curve[best].deferral_rate
    if rate == 0:
        return curve[best], (curve[best],)

    def alike(i: int) -> bool:
        difference = np.subtract(grades[i], grades[best], dtype=np.float64)
        same_score = difference.sum() ** 2 <= (difference**2).sum() + 1e-9  # tolerance: grades may be fractions
        return bool(same_score and abs(curve[i].deferral_rate - rate) <= _SAME_COST * rate)

    first = last = best
    while first > 0 and alike(first - 1):
        first -= 1
    while last + 1 < len(curve) and alike(last + 1):
        last += 1
    middle = (curve[first].threshold + curve[last].threshold) / 2
    plateau = tuple(curve[first : last + 1])
    return min(plateau, key=lambda point: abs(point.threshold - middle)), plateau


def calibrate(
    team: CoLM,
    records: Records,
    examples: Examples,
    task: str | None,
    settings: Calibration,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Choose the threshold η on a dev set (see `choose`).

    Args:
      team: with a gate.
      records: the dev file's lines with their places.
      examples: the same, tokenised.
      task: decode the prompts at every threshold and measure this task's accuracy; None: measure next-token accuracy on
        the dev texts, of whichever model writes at that threshold.
      settings: the grid.
      progress: callback(thresholds done, total).

    Returns:
      The choice: "threshold", "metric", "score", its 95 % "interval" (None without a task), "deferral_rate", and
      "plateau", its lowest and highest threshold. The grid: "source", "thresholds" (deferral rate -> η), "curve" (one
      entry per Point) and its "area", the mean score over deferral rates. The gate: "roc" on the source's positions,
      "reliability" on the dev texts (see `figures`). The models: "mixture", the weights of their best constant mixture
      over the dev texts, base first. The work: "answers_decoded", "answers_reused" (0 if nothing is
      decoded), "tokens" and "positions" of all models' passes over whole texts.

    Raises:
      UserError: no gate; a line without a prompt, for a task or source "generations".
    """
    if team.gate is None:
        raise UserError("calibration needs a base with a gate; train one first (colm train)")
    source = source_of(records, settings, set(team.kinds) <= {"resident"})
    prompts, references = decoded_prompts(records, task, source), references_of(records, task)
    answers = Answers(team, prompts, settings.max_new_tokens) if prompts else None
    scored = team.score_examples(examples)
    on_texts = np.asarray(jax.jit(p_defer)(gate_logits_of(scored)))  # jitted: one dispatch, no intermediate arrays
    by_base, by_expert = _right(scored)
    if source == "texts":
        # The greedy choices take the same passes over the texts once more.
        differs, known = _differs_on_texts(team, examples, scored)
        rates, counts = on_texts, scored.counts
    else:
        assert answers is not None  # made above
        written = answers.at(1.0)  # η = 1: the base alone
        rates, differs, counts = _positions_of_generations(team, prompts, written)
        known = np.ones(len(rates), bool)
    thresholds = {rate: float(np.quantile(rates, 1 - rate)) for rate in settings.rates}
    grid = fill(thresholds.values())
    curve, grades, intervals = list[Point](), list[np.ndarray](), {}
    for i, eta in enumerate(grid):
        if task is None:
            deferred = on_texts > eta
            grades.append(np.where(deferred, by_expert, by_base))
            point = Point(eta, float(deferred.mean()), float(grades[-1].mean()))
        else:
            assert answers is not None  # made above
            found = answers.at(eta)
            columns = [[getattr(a, key) for a in found] for key in ("text", "sources", "expert_calls")]
            score = score_answers(task, columns[0], references, columns[1], columns[2])
            point = Point(eta, score.deferral_rate, score.accuracy)
            grades.append(np.array(score.grades))
            intervals[eta] = list(score.interval)
        curve.append(point)
        progress(i + 1, len(grid))
    chosen, plateau = choose(curve, grades)
    counts += scored.counts + (NO_PASSES if answers is None else answers.counts)
    return {
        "threshold": chosen.threshold,
        "mixture": mixture_of(scored),
        "metric": task or "next_token_accuracy",
        "score": chosen.score,
        "interval": intervals.get(chosen.threshold),
        "deferral_rate": chosen.deferral_rate,
        "plateau": [plateau[-1].threshold, plateau[0].threshold],
        "source": source,
        "thresholds": {str(rate): eta for rate, eta in thresholds.items()},
        "curve": [asdict(point) for point in curve],
        "area": area([(point.deferral_rate, point.score) for point in curve]),
        "roc": roc(rates[known], differs[known]),
        "reliability": reliability(on_texts, by_expert & ~by_base),
        "answers_decoded": 0 if answers is None else answers.decoded,
        "answers_reused": 0 if answers is None else answers.reused,
        **counts.as_json(),
    }
