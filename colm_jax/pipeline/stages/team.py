"""Stages `calibrate`, `risk` and `team`: threshold and risk, learned on dev, and the team directory with both."""

import hashlib
import json
from pathlib import Path
from typing import Any

from colm_jax import console
from colm_jax.calibration.risk import Graded, learn_risk, too_few
from colm_jax.calibration.threshold import calibrate, decoded_prompts, references_of
from colm_jax.checkpoints.card import model_card
from colm_jax.checkpoints.directory import revision
from colm_jax.checkpoints.team import TEAM_FILE
from colm_jax.data.tokens import SUMMARY
from colm_jax.evaluation.tasks import score_answers
from colm_jax.parallel import is_first
from colm_jax.pipeline.executor import StageKey
from colm_jax.pipeline.files import link
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stages.opened import RunContext, endpoint_hashes, trained_team
from colm_jax.settings.references import text_of
from colm_jax.storage import absolute, entries, read_json, shown, write_json, write_text

CALIBRATION, RISK = "calibration.json", "risk.json"


def calibrates(inputs: RunInputs) -> bool:
    """Return whether a threshold is calibrated."""
    return inputs.calibrates


def calibrate_key(run: RunContext) -> StageKey:
    """Return the trained team and the dev lines."""
    inputs, config = run.inputs, run.inputs.config
    decided = config.calibration.__dict__ | {"source": inputs.calibration_source}
    settings = {"calibration": decided, "task": config.task}
    return StageKey({"team": run.digests("train")["train"], "dev": inputs.hashes["dev"]}, settings)


def write_calibration(run: RunContext, directory: Path) -> None:
    """Choose the threshold on the dev lines."""
    inputs, config = run.inputs, run.inputs.config
    with console.bar("calibrating") as bar:
        records, examples = inputs.records["dev"], inputs.examples["dev"]
        result = calibrate(trained_team(run), records, examples, config.task, config.calibration, bar.to)
    counts = {key: result.pop(key) for key in ("tokens", "positions")}
    if is_first():
        write_json(directory / CALIBRATION, result)
        write_json(directory / SUMMARY, counts)


def learns_risk(inputs: RunInputs) -> bool:
    """Return whether the risk at each token is learned: answers to the dev prompts are decoded and graded."""
    return inputs.calibrates and inputs.config.task is not None


def risk_key(run: RunContext) -> StageKey:
    """Return the trained team, its threshold and the dev lines."""
    inputs, config = run.inputs, run.inputs.config
    settings = {"task": config.task, "max_new_tokens": config.calibration.max_new_tokens}
    hashes = run.digests("train", "calibrate") | {"dev": inputs.hashes["dev"]} | endpoint_hashes(inputs)
    return StageKey(hashes, settings)


def write_risk(run: RunContext, directory: Path) -> None:
    """Answer the dev prompts at the calibrated threshold, and learn where the answers go wrong."""
    risk, summary = None, {"why": too_few(len(run.inputs.records["dev"]))}
    if summary["why"] is None:
        risk, summary = learn_risk(_graded_answers(run))
    if summary["why"] is not None:
        console.note(f"no marks that say where to check: {summary['why']}")
    if is_first():
        write_json(directory / RISK, {"risk": None if risk is None else risk.as_json(), **summary})


def _graded_answers(run: RunContext) -> list[Graded]:
    """Answer the dev prompts, and grade the answers."""
    inputs, task = run.inputs, run.inputs.config.task
    assert task is not None  # else nothing is learned
    records = inputs.records["dev"]
    prompts, references = decoded_prompts(records, task, "generations"), references_of(records, task)
    with console.bar("learning where to check", len(prompts)) as bar:
        answers = trained_team(run).generate(
            prompts,
            places=[where for where, _ in records],
            threshold=read_json(run.directory("calibrate") / CALIBRATION)["threshold"],
            max_new_tokens=inputs.config.calibration.max_new_tokens,
            batch_size=inputs.config.batch_size,
            evidence=True,
            progress=bar.to,
        )
    columns = [[getattr(answer, key) for answer in answers] for key in ("text", "sources", "expert_calls")]
    grades = score_answers(task, columns[0], references, columns[1], columns[2]).grades
    return [Graded(a.evidence, grade) for a, grade in zip(answers, grades, strict=True) if a.evidence is not None]


def team_key(run: RunContext) -> StageKey:
    """Return the trained team, its threshold, and the facts about their origin."""
    facts = json.dumps(_provenance(run.inputs), sort_keys=True)
    hashes = run.digests("train", "calibrate", "risk")
    return StageKey(hashes | {"provenance": hashlib.sha256(facts.encode()).hexdigest()})


def write_team(run: RunContext, directory: Path) -> None:
    """Write the team directory: links to the trained weights, colm.json with threshold and provenance, a model card."""
    if not is_first():
        return
    source = run.directory("train") / "team"
    facts = read_json(source / TEAM_FILE) | _provenance(run.inputs)
    if run.has("calibrate"):
        result = read_json(run.directory("calibrate") / CALIBRATION)
        facts |= {"threshold": result["threshold"], "calibration": result}
    if run.has("risk"):
        found = read_json(run.directory("risk") / RISK)
        facts |= {"risk": found.pop("risk"), "risk_calibration": found}
    for path in entries(source):
        target = directory / path.name
        if path.name != TEAM_FILE and not target.exists():
            link(path, target)
    write_text(directory / "README.md", model_card(facts))
    write_json(directory / TEAM_FILE, facts)


def _provenance(inputs: RunInputs) -> dict[str, Any]:
    """Return what colm.json says of the models, the data and the training."""
    config = inputs.config

    def model(name: str, directory: Path | None, key: str) -> dict[str, Any]:
        if directory is None:  # an endpoint
            return {"model": name, "revision": None, "sha256": inputs.hashes[key]}
        commit = revision(directory)
        known_as = name.partition("@")[0] if commit else str(absolute(shown(directory)))
        return {"model": known_as, "revision": commit, "sha256": inputs.hashes[key]}

    kinds = inputs.outline.kinds
    experts = [
        model(name, directory, f"expert-{m + 1}") | {"kind": kinds[m]}
        for m, (name, directory) in enumerate(zip(config.experts, inputs.expert_directories))
    ]
    training = {"objective": text_of(config.training.objective), "trainable": config.training.trainable}
    used = {split: file for split, file in inputs.files.items() if split != "test"}
    data = {split: {"file": file.name, "sha256": inputs.hashes[split]} for split, file in used.items()}
    base = model(config.base, inputs.base_directory, "base")
    return {
        "experts": experts,
        "expert_dtype": config.expert_dtype,
        "spans": _spans(inputs),
        "shared_vocabulary": {"words": int(inputs.allowed.sum()), "sha256": inputs.vocabulary_digest},
        "provenance": {"base": base, "data": data, "training": training},
    }


def _spans(inputs: RunInputs) -> str:
    """Return the setting by which a team of these models has the same units again."""
    if not inputs.outline.shares_tokenizer:
        return "text"
    return "auto" if inputs.outline.resident else "tokens"
