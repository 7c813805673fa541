"""What finished stages wrote, opened for the stages that need them."""

import numpy as np

from colm_jax.checkpoints.team import read_facts, threshold_of
from colm_jax.data.records import Examples
from colm_jax.pipeline.executor import StageContext
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.scoring import Scores, load_scores, open_hidden
from colm_jax.storage import load_array
from colm_jax.team import CoLM
from colm_jax.training.positions import Positions

RunContext = StageContext[RunInputs]


def training_examples(run: RunContext) -> Examples:
    """Return the training texts, on disk. Needs `tokens`."""
    return run.inputs.training_examples(run.directory("tokens"))


def texts_digest(run: RunContext) -> str:
    """Return the hash of the training texts' ids and loss masks: all that scores and hidden states depend on."""
    examples = training_examples(run)
    return examples.digest(range(len(examples.items)))


def base_scores(run: RunContext) -> Scores:
    """Return the base's scores of the training texts. Needs `tokens` and `scores`."""
    return load_scores(run.directory("scores/base"), training_examples(run))


def expert_scores(run: RunContext) -> list[Scores]:
    """Return each expert's scores of the training texts; empty if experts score online. Needs `tokens`, `scores`."""
    names = [f"scores/expert-{m + 1}" for m in range(len(run.inputs.config.experts))]
    return [load_scores(run.directory(name), training_examples(run)) for name in names if run.has(name)]


def open_positions(run: RunContext) -> Positions:
    """Return the positions that count in the loss: hidden states on disk, scores and labels in memory.

    Needs `tokens`, `scores`, `labels` and `hidden`.
    """
    examples = training_examples(run)
    counted = examples.counted()
    experts = [np.concatenate(scores.log_prob)[counted] for scores in expert_scores(run)]
    return Positions(
        hidden=open_hidden(run.directory("hidden"), examples),
        base_log_prob=np.concatenate(base_scores(run).log_prob)[counted],
        expert_log_probs=np.stack(experts, -1) if experts else None,
        labels=load_array(run.directory("labels") / "labels.npy")[counted],
    )


def trained_team(run: RunContext) -> CoLM:
    """Return the trained team; base and experts are loaded once in a run. Needs `train`."""
    return run.inputs.team(run.directory("train") / "team")


def run_threshold(run: RunContext) -> float:
    """Return the threshold of the run's team. Needs `team`."""
    return threshold_of(read_facts(run.directory("team")))
