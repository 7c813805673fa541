"""Stages `calibrate` and `team`: the threshold, and the team directory that holds it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from colm_jax import console
from colm_jax.calibration.threshold import calibrate
from colm_jax.checkpoints.card import model_card
from colm_jax.checkpoints.directory import revision
from colm_jax.checkpoints.team import TEAM_FILE
from colm_jax.data.tokens import SUMMARY
from colm_jax.parallel import is_first
from colm_jax.pipeline.executor import StageKey
from colm_jax.pipeline.files import link
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stages.opened import RunContext, trained_team
from colm_jax.settings.references import text_of
from colm_jax.storage import absolute, entries, read_json, shown, write_json, write_text

CALIBRATION = "calibration.json"


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


def team_key(run: RunContext) -> StageKey:
    """Return the trained team, its threshold, and the facts about their origin."""
    facts = json.dumps(_provenance(run.inputs), sort_keys=True)
    hashes = run.digests("train", "calibrate")
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
