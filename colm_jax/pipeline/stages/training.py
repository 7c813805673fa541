"""Stages `labels`, `gate` and `train`: weak labels, gate initialisation and the training itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from colm_jax import console
from colm_jax.checkpoints.huggingface import read_config
from colm_jax.checkpoints.team import make_gate, save_team
from colm_jax.labels import weak_labels
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate, gate_width
from colm_jax.parallel import is_first
from colm_jax.pipeline.executor import StageKey
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stages.opened import (
    RunContext,
    base_scores,
    expert_scores,
    open_positions,
    training_examples,
)
from colm_jax.storage import load_array, save_array, write_json, write_text
from colm_jax.training.gate_fit import Fit, initial_gate, train_gate
from colm_jax.training.trainer import train


def needs_labels(inputs: RunInputs) -> bool:
    """Return whether weak labels are read: there are experts, and they are scored or the gate is fitted to labels."""
    config = inputs.config
    return bool(config.experts) and not (config.online and config.gate_solver == "zero")


def labels_key(run: RunContext) -> StageKey:
    """Return the scores."""
    config = run.inputs.config
    return StageKey(run.digests("scores"), {"method": config.gate_init.label_method, "experts": len(config.experts)})


def write_labels(run: RunContext, directory: Path) -> None:
    """Write weak labels at every position of the training texts."""
    config = run.inputs.config
    base = np.concatenate(base_scores(run).is_argmax)
    found = [np.concatenate(scores.is_argmax) for scores in expert_scores(run)]
    # Method b, the only one of an online run, reads the base alone; of the experts it needs their number.
    experts = np.stack(found, -1) if found else np.zeros((*base.shape, len(config.experts)), bool)
    labels = weak_labels(base, experts, config.gate_init.label_method)
    if is_first():
        save_array(directory / "labels.npy", labels)
        shares = labels[training_examples(run).counted()].mean(0).tolist()
        write_json(directory / "summary.json", {"method": config.gate_init.label_method, "share_of_ones": shares})


def gate_key(run: RunContext) -> StageKey:
    """Return labels and hidden states; for a gate of zeros its shape."""
    inputs = run.inputs
    hashes = run.digests("labels", "hidden")
    if not run.has("labels"):
        hashes |= {"base": inputs.hashes["base"], "experts": str(len(inputs.config.experts))}
    if not run.has("hidden") and inputs.config.training.gate_inputs != "hidden":
        hashes |= {"inputs": inputs.config.training.gate_inputs}
    return StageKey(hashes, replace(inputs.config.gate_init, solver=inputs.config.gate_solver))


def write_gate(run: RunContext, directory: Path) -> None:
    """Initialise the gate: fit it to the weak labels, or set it to zero."""
    inputs = run.inputs
    if run.has("hidden"):
        settings = replace(inputs.config.gate_init, solver=inputs.config.gate_solver)
        with console.bar("fitting the gate") as bar:
            fit = initial_gate(open_positions(run), settings, inputs.head_mean, _fit_progress(bar))
    else:
        width = gate_width(read_config(inputs.base_directory).width, inputs.config.training.gate_inputs)
        fit = Fit(np.zeros((width, len(inputs.config.experts)), np.float32), (), 0)
    if is_first():
        save_array(directory / "kernel.npy", fit.kernel)
        write_json(directory / "summary.json", {"loss": fit.losses, "passes": fit.passes})


def train_key(run: RunContext) -> StageKey:
    """Return scores, gate and, if the base stays as it is, its hidden states; the experts themselves if they score
    online.
    """
    inputs, config = run.inputs, run.inputs.config
    frozen = ["hidden"] if config.training.trainable == "gate" else []
    hashes = run.digests("scores", "gate", *frozen)
    hashes |= {"chat_template": inputs.tokenizer.template_digest or "none"}
    if config.online:
        hashes |= {name: digest for name, digest in inputs.hashes.items() if name.startswith("expert-")}
        hashes |= {"expert_dtype": config.expert_dtype or config.dtype}
    if config.training.packing:
        hashes |= {"batch_size": "texts"}  # once it counted rows
    plain = {"gate_inputs": "hidden", "gate_ridge": 0.0}  # runs from before there was a choice stay done
    settings = {k: v for k, v in vars(config.training).items() if k not in plain or v != plain[k]}
    return StageKey(hashes, settings)


def write_trained(run: RunContext, directory: Path) -> None:
    """Train the team and write it, without a threshold yet."""
    inputs = run.inputs
    kernel = load_array(run.directory("gate") / "kernel.npy")
    if inputs.config.training.trainable == "gate":
        decoder, gate = inputs.base.decoder, _train_gate(run, kernel, directory)
    else:
        decoder, gate = _train_models(run, kernel, directory)
    unknown = {"threshold": None}
    arguments = decoder, gate, inputs.base_directory, inputs.config.dtype, unknown, inputs.base.defer_embedding
    save_team(directory / "team", *arguments)


def _train_gate(run: RunContext, kernel: np.ndarray, directory: Path) -> Gate:
    """Fit the gate to hidden states and scores; the base is not trained."""
    settings, positions = run.inputs.config.training, open_positions(run)
    with console.bar("training the gate") as bar:
        weight, ridge = settings.positive_weight, settings.gate_ridge
        fit = train_gate(positions, kernel, settings.objective, weight, _fit_progress(bar), ridge)
    lines = "".join(json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate(fit.losses))
    if is_first():
        write_text(directory / "metrics.jsonl", lines)
    return make_gate(fit.kernel, settings.gate_inputs)


def _train_models(run: RunContext, kernel: np.ndarray, directory: Path) -> tuple[Decoder, Gate]:
    """Train base and gate together."""
    inputs = run.inputs
    online = inputs.config.online
    with console.bar("training") as bar:
        return train(
            inputs.base.decoder,
            make_gate(kernel, inputs.config.training.gate_inputs),
            training_examples(run),
            base_scores(run),
            expert_scores(run),
            inputs.config.training,
            directory,
            lambda step, steps, metrics: bar.to(step, steps, console.of_step(metrics)),
            inputs.allowed,
            inputs.mesh,
            [inputs.load_expert(m) for m in range(len(inputs.expert_directories))] if online else [],
            profile_steps=inputs.config.profile_steps,
            opening=inputs.opening(0),
        )


def _fit_progress(bar: console.Bar) -> Callable[[int, float], None]:
    """Return a progress callback (step, loss) that moves a bar."""
    return lambda step, loss: bar.to(step, None, f"loss {loss:.4f}")
