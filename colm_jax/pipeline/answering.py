"""A run's answers to the test prompts, under every strategy that it is asked for, and their grades."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colm_jax import console
from colm_jax.calibration.threshold import references_of
from colm_jax.checkpoints.team import load_base
from colm_jax.evaluation.tasks import score_answers
from colm_jax.evaluation.text import evaluate_text
from colm_jax.parallel import is_first, on_first
from colm_jax.pipeline.files import write_answers
from colm_jax.pipeline.stage import Stage
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.run import UNTRAINED
from colm_jax.storage import read_lines, write_json
from colm_jax.team import CoLM

if TYPE_CHECKING:
    from colm_jax.pipeline.run import Run

GRADES = "grades.json"  # of every answer, by strategy


def _answerer(run: "Run", strategy: str) -> tuple[CoLM, str]:
    """Who answers under one of the configuration's strategies, and the decoding strategy that they follow."""
    if strategy not in (UNTRAINED, "proxy"):
        return run.team, strategy
    given = load_base(run.base_directory, run.config.dtype, run.mesh, stacked=False)
    if strategy == UNTRAINED:
        return CoLM(given, [], [], run.mesh), "base"
    experts, tokenizers = [*run.experts, given.decoder], [*run.expert_tokenizers, run.tokenizer]
    return CoLM(run.trained, experts, tokenizers, run.mesh), strategy


def generate(run: "Run", team: Stage) -> Stage | None:
    """Answers to the test prompts under every strategy of the configuration, at the threshold where one counts."""
    split = run.test_split
    if split is None:
        return None
    strategies = run.config.answered_by

    def work(directory: Path) -> None:
        prompts, places = run.prompts, [where for where, _ in run.records[split]]
        names = [str(i) for i in range(len(prompts))]
        rate = run.config.random_rate or 0.0
        for name in strategies:
            path = directory / f"{name}.jsonl"
            if on_first(lambda path=path: not path.exists()):
                answerer, strategy = _answerer(run, name)
                with console.bar(f"generating: {name}", len(prompts)) as bar:
                    settings = GenerationSettings(
                        strategy,
                        run.threshold(),
                        rate=rate,
                        max_new_tokens=run.config.max_new_tokens,
                        batch_size=run.config.batch_size,
                        correction=run.config.correction,
                    )
                    arguments = path, answerer, prompts, names, settings, team.digest
                    write_answers(*arguments, places=places, progress=bar.to)
            if name == "defer" and run.config.random_rate is None:
                lines = read_lines(path)
                shares = [np.mean(np.array(line["sources"]) > 0) for line in lines if line["sources"]]
                rate = float(np.mean(shares)) if shares else 0.0

    settings = {k: getattr(run.config, k) for k in ("max_new_tokens", "prompt_tokens", "random_rate")}
    settings |= {"strategies": strategies, "correction": run.config.correction.__dict__}
    return run.do("generate", {"team": team.digest, "test": run.hashes[split]}, settings, work)


def evaluate(run: "Run", team: Stage, generated: Stage) -> Stage:
    """Nats per token on the test texts and, where there is a task, its accuracy and each answer's grade."""
    split = run.test_split
    assert split is not None  # there are answers

    def work(directory: Path) -> None:
        scores = evaluate_text(run.team.score_examples(run.examples[split]))
        result: dict[str, Any] = {"split": split, "text": scores.__dict__}
        if run.config.task is not None:
            references = references_of(run.records[split], run.config.task)
            result["task"] = {"name": run.config.task}
            grades: dict[str, Sequence[float]] = {}
            for name in run.config.answered_by:
                path = generated.directory / f"{name}.jsonl"
                lines = read_lines(path)
                columns = [[line[key] for line in lines] for key in ("text", "sources", "expert_calls")]
                score = score_answers(run.config.task, columns[0], references, columns[1], columns[2])
                grades[name] = score.grades
                result["task"][name] = {
                    "accuracy": score.accuracy,
                    "interval": score.interval,
                    "deferral_rate": score.deferral_rate,
                    "expert_calls": score.expert_calls,
                    **score.measures,
                }
            if is_first():
                write_json(directory / GRADES, grades)
        if is_first():
            write_json(directory / "evaluation.json", result)

    inputs = {"team": team.digest, "generate": generated.digest, "test": run.hashes[split]}
    return run.do("evaluate", inputs, {"task": run.config.task}, work)
