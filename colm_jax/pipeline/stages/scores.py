"""Stages `tokens`, `scores/NAME` and `hidden`: the training texts, and what the models compute of them once."""

from pathlib import Path

from colm_jax import console
from colm_jax.checkpoints.directory import revision
from colm_jax.data.tokens import tokenise
from colm_jax.parallel import on_first
from colm_jax.pipeline.executor import StageKey
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stages.opened import RunContext, texts_digest, training_examples
from colm_jax.scoring import hidden_to_directory, score_to_directory


def tokens_key(run: RunContext) -> StageKey:
    """Return the training file and the tokenizer, not the models."""
    inputs = run.inputs
    hashes = {"data": inputs.file_hashes["data"], "tokenizer": inputs.tokenizer.digest}
    return StageKey(hashes | {"shared_vocabulary": inputs.vocabulary_digest}, {"length": inputs.length})


def write_tokens(run: RunContext, directory: Path) -> None:
    """Tokenise the training texts."""
    inputs = run.inputs
    with console.bar("tokenising", bytes_=True) as bar:
        arguments = inputs.files["data"], inputs.tokenizer, inputs.length, directory, inputs.allowed, bar.to
        on_first(lambda: tokenise(*arguments))


def scores_name(model: int) -> str:
    """Return the name of the stage that scores a model: 0 is the base, 1..M are the experts."""
    return f"scores/expert-{model}" if model else "scores/base"


def scores_key(model: int, run: RunContext) -> StageKey:
    """Return the texts and the one model."""
    inputs, config = run.inputs, run.inputs.config
    directory = inputs.outline.directories[model]
    hashes = {
        "texts": texts_digest(run),
        "model": inputs.hashes[f"expert-{model}" if model else "base"],
        "revision": revision(directory) or "a local directory",
        "shared_vocabulary": inputs.vocabulary_digest,
    }
    return StageKey(hashes, {"dtype": config.expert_dtype or config.dtype if model else config.dtype})


def write_scores(model: int, run: RunContext, directory: Path) -> None:
    """Score a model on the training texts."""
    inputs = run.inputs
    decoder = inputs.load_expert(model - 1) if model else inputs.base.decoder
    examples = training_examples(run)
    with console.bar(f"scoring {Path(scores_name(model)).name}", len(examples.items)) as bar:
        score_to_directory(decoder, examples, directory, inputs.allowed, bar.to)


def scored_once(inputs: RunInputs) -> bool:
    """Return whether experts are scored before training, not inside its steps."""
    return not inputs.config.online


def needs_hidden(inputs: RunInputs) -> bool:
    """Return whether a gate is fitted to the hidden states of the base as given."""
    return inputs.config.gate_solver != "zero" or inputs.config.training.trainable == "gate"


def hidden_key(run: RunContext) -> StageKey:
    """Return the texts and the base. No expert, so that hidden states serve again when experts are exchanged."""
    hashes = {"texts": texts_digest(run), "base": run.inputs.hashes["base"]}
    return StageKey(hashes, {"dtype": run.inputs.config.dtype})


def write_hidden(run: RunContext, directory: Path) -> None:
    """Write the base's final hidden states at the positions that count."""
    examples = training_examples(run)
    with console.bar("hidden states", len(examples.items)) as bar:
        hidden_to_directory(run.inputs.base.decoder, examples, directory, bar.to)
