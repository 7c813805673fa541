"""What finished stages wrote, opened for the stages that need them."""

import numpy as np

from colm_jax.checkpoints.team import read_facts, threshold_of
from colm_jax.data.records import Examples
from colm_jax.pipeline.executor import StageContext
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stage import hash_expert
from colm_jax.scoring import Scores, load_scores, open_hidden
from colm_jax.storage import load_array
from colm_jax.team import CoLM, read_risk
from colm_jax.training.positions import Positions

RunContext = StageContext[RunInputs]


def training_examples(run: RunContext) -> Examples:
    """Return the training texts, on disk. Needs `tokens`."""
    return run.inputs.training_examples(run.directory("tokens"))


def texts_digest(run: RunContext) -> str:
    """Return the hash of the base's ids, loss masks and units of the training texts: all that its scores, and hidden
    states, depend on.
    """
    examples = training_examples(run)
    return examples.digest(range(len(examples.items)))


def view_digest(run: RunContext, model: int) -> str | None:
    """Return the hash of the training texts as an expert reads them; None where it reads them as the base.

    Of texts whose tokens are unknown it is that of their files.
    """
    view = training_examples(run).view(model) if model else None
    if view is None:
        return None
    if isinstance(view, Examples):
        return view.digest(range(len(view.items)))
    return run.digests("tokens")["tokens"]


def endpoint_hashes(inputs: RunInputs) -> dict[str, str]:
    """Return the hashes of experts that are endpoints, with what decides their answers."""
    config = inputs.config
    named = enumerate(zip(config.experts, inputs.expert_directories), start=1)
    return {f"endpoint-{m}": hash_expert(name, None, config.remote) for m, (name, where) in named if where is None}


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
    scored = expert_scores(run)
    experts = [np.concatenate(scores.log_prob)[counted] for scores in scored]
    sampled = [np.concatenate(scores.known)[counted] for scores in scored if scores.known is not None]
    return Positions(
        hidden=open_hidden(run.directory("hidden"), examples),
        base_log_prob=np.concatenate(base_scores(run).log_prob)[counted],
        expert_log_probs=np.stack(experts, -1) if experts and not sampled else None,
        labels=load_array(run.directory("labels") / "labels.npy")[counted],
        known=np.all(sampled, axis=0) if sampled else None,
    )


def trained_team(run: RunContext) -> CoLM:
    """Return the trained team; base and experts are loaded once in a run. Needs `train`."""
    return run.inputs.team(run.directory("train") / "team")


def finished_team(run: RunContext) -> CoLM:
    """Return the trained team as it is published: with what it has learned of its risks. Needs `train` and `team`."""
    return run.inputs.team(run.directory("train") / "team", read_risk(run.directory("team")))


def run_threshold(run: RunContext) -> float:
    """Return the threshold of the run's team. Needs `team`."""
    return threshold_of(read_facts(run.directory("team")))
