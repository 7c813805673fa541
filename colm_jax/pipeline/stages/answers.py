"""Stages `generate` and `evaluate`: answers to the test prompts under every strategy of a run, and their grades."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax import console
from colm_jax.calibration.threshold import references_of
from colm_jax.checkpoints.team import load_base
from colm_jax.data.tokens import SUMMARY
from colm_jax.decoding.strategies import definitions
from colm_jax.errors import UserError
from colm_jax.evaluation.marks import mark_figures
from colm_jax.evaluation.mixture import bits_per_byte, fit_mixture, mixture_of
from colm_jax.evaluation.tasks import score_answers
from colm_jax.evaluation.text import evaluate_text
from colm_jax.parallel import is_first, on_first
from colm_jax.pipeline.executor import StageKey
from colm_jax.pipeline.files import write_answers
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stages.opened import (
    RunContext,
    base_scores,
    endpoint_hashes,
    expert_scores,
    finished_team,
    run_threshold,
    trained_team,
    training_examples,
)
from colm_jax.pipeline.stages.team import CALIBRATION
from colm_jax.scoring import NEVER
from colm_jax.scoring.texts import ScoredTexts
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.run import UNTRAINED
from colm_jax.storage import read_json, read_lines, write_json
from colm_jax.team import CoLM

GRADES = "grades.json"  # of every answer, by strategy
EVALUATION = "evaluation.json"


def has_prompts(inputs: RunInputs) -> bool:
    """Return whether there are prompts to answer: a test or dev file."""
    return inputs.test_split is not None


def test_split(inputs: RunInputs) -> str:
    """Return the split whose prompts are answered, of a run that has one."""
    assert inputs.test_split is not None
    return inputs.test_split


def generate_key(run: RunContext) -> StageKey:
    """Return the team, the test lines and the strategies."""
    inputs, config = run.inputs, run.inputs.config
    settings = {k: getattr(config, k) for k in ("max_new_tokens", "prompt_tokens", "random_rate")}
    settings |= {"strategies": config.answered_by, "correction": config.correction.__dict__}
    if registered := definitions(*config.answered_by):
        settings["registered"] = registered
    hashes = run.digests("team") | {"test": inputs.hashes[test_split(inputs)]}
    hashes |= endpoint_hashes(inputs)
    return StageKey(hashes, settings)


def write_generated(run: RunContext, directory: Path) -> None:
    """Answer the test prompts under every strategy of the configuration, each into STRATEGY.jsonl."""
    inputs, config = run.inputs, run.inputs.config
    places = [where for where, _ in inputs.records[test_split(inputs)]]
    rate = config.random_rate or 0.0
    for name in config.answered_by:
        path = directory / f"{name}.jsonl"
        if not on_first(path.exists):
            team, strategy = _answering_team(run, name)
            settings = GenerationSettings(
                strategy=strategy,
                threshold=run_threshold(run),
                rate=rate,
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
                correction=config.correction,
            )
            with console.bar(f"generating: {name}", len(places)) as bar:
                write_answers(
                    path,
                    team,
                    inputs.prompts,
                    [str(i) for i in range(len(places))],
                    settings,
                    key=run.digests("team")["team"],
                    places=places,
                    progress=bar.to,
                )
        if name == "defer" and config.random_rate is None:
            rate = _deferral_rate(path)


def _answering_team(run: RunContext, strategy: str) -> tuple[CoLM, str]:
    """Return the team that answers under a strategy of the configuration, and its decoding strategy."""
    inputs = run.inputs
    if strategy not in (UNTRAINED, "proxy"):
        return finished_team(run), strategy
    given = load_base(inputs.base_directory, inputs.config.dtype, inputs.mesh, stacked=False)
    if strategy == UNTRAINED:
        return CoLM(given, [], [], inputs.mesh), "base"
    if not inputs.outline.resident:
        raise UserError("Run.strategies: proxy needs models that share a tokenizer and have their weights here")
    experts, tokenizers = [*inputs.experts, given.decoder], [*inputs.expert_tokenizers, inputs.tokenizer]
    return CoLM(inputs.trained_base(run.directory("train") / "team"), experts, tokenizers, inputs.mesh), strategy


def _deferral_rate(path: Path) -> float:
    """Return the mean over answers of the share of tokens that experts wrote; 0 without any token."""
    shares = [np.mean(np.array(line["sources"]) > 0) for line in read_lines(path) if line["sources"]]
    return float(np.mean(shares)) if shares else 0.0


def evaluate_key(run: RunContext) -> StageKey:
    """Return the team, its answers and the test lines."""
    inputs = run.inputs
    hashes = run.digests("team", "generate") | {"test": inputs.hashes[test_split(inputs)]}
    if not run.has("calibrate"):  # where the best constant mixture is chosen
        hashes |= {"dev": inputs.hashes["dev"]} if "dev" in inputs.records else run.digests("scores")
    return StageKey(hashes, {"task": inputs.config.task, "mixture_on": ["dev", "data of a frozen base"]})


def _mixture(run: RunContext, team: CoLM, scored: ScoredTexts) -> tuple[list[float], str] | None:
    """Return the weights of the best constant mixture, and the split whose texts they are the best of.

    That is dev; without it, the training texts for a frozen base, as they were scored. None: a base was trained, which
    knows its training texts too well, or experts scored them online.

    Args:
      run: the run.
      team: as trained.
      scored: the texts that are evaluated.
    """
    inputs = run.inputs
    if run.has("calibrate"):
        return read_json(run.directory("calibrate") / CALIBRATION)["mixture"], "dev"
    if "dev" in inputs.records:
        dev = scored if test_split(inputs) == "dev" else team.score_examples(inputs.examples["dev"])
        return mixture_of(dev), "dev"
    experts = expert_scores(run) if inputs.config.experts else []
    frozen = inputs.config.training.trainable == "gate"
    if not frozen or not run.has("scores/base") or len(experts) < len(inputs.config.experts):
        return None
    counted = training_examples(run).counted()
    columns = [np.concatenate(scores.log_prob)[counted] for scores in (base_scores(run), *experts)]
    models = np.stack(columns, -1)
    return fit_mixture(models[(models[:, 1:] > NEVER).all(axis=1)]).tolist(), "data"


def write_evaluation(run: RunContext, directory: Path) -> None:
    """Write nats per unit and bits per byte on the test texts and, if there is a task, its accuracy and each answer's
    grade.
    """
    inputs, task = run.inputs, run.inputs.config.task
    split, team = test_split(inputs), trained_team(run)
    scored = team.score_examples(inputs.examples[split])
    weights, chosen_on = _mixture(run, team, scored) or (None, None)
    result: dict[str, Any] = {
        "split": split,
        "text": evaluate_text(scored).__dict__,
        "bits_per_byte": bits_per_byte(scored, weights),
        "mixture": {"weights": weights, "split": chosen_on},
    }
    if task is not None:
        references = references_of(inputs.records[split], task)
        result["task"] = {"name": task}
        grades: dict[str, Sequence[float]] = {}
        for name in inputs.config.answered_by:
            lines = read_lines(run.directory("generate") / f"{name}.jsonl")
            columns = [[line[key] for line in lines] for key in ("text", "sources", "expert_calls")]
            score = score_answers(task, columns[0], references, columns[1], columns[2])
            grades[name] = score.grades
            result["task"][name] = {
                "accuracy": score.accuracy,
                "interval": score.interval,
                "deferral_rate": score.deferral_rate,
                "expert_calls": score.expert_calls,
                **score.measures,
            }
            judged = [(line, grade) for line, grade in zip(lines, score.grades, strict=True) if "risk" in line]
            if judged:
                risks, marked = zip(*((line["risk"], bool(line["check"])) for line, _ in judged))
                result["task"][name]["marks"] = mark_figures(risks, marked, [grade for _, grade in judged])
        if is_first():
            write_json(directory / GRADES, grades)
    if is_first():
        write_json(directory / EVALUATION, result)
        write_json(directory / SUMMARY, scored.counts.as_json())
