"""Stages `tokens`, `scores/NAME` and `hidden`: the training texts, and what the models compute of them once."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colm_jax import console
from colm_jax.checkpoints.directory import revision
from colm_jax.console import Progress
from colm_jax.data.records import Example, Examples
from colm_jax.data.tokens import SUMMARY, open_tokens, tokenise
from colm_jax.data.units import TextView
from colm_jax.errors import UserError
from colm_jax.experts.remote import GreedySpans
from colm_jax.parallel import is_first, on_first
from colm_jax.pipeline.executor import StageKey
from colm_jax.pipeline.inputs import RunInputs
from colm_jax.pipeline.stages.opened import RunContext, texts_digest, training_examples, view_digest
from colm_jax.scoring import PassCounts, hidden_to_directory, score_to_directory, scorer
from colm_jax.scoring.passes import NO_PASSES
from colm_jax.scoring.units import in_layout
from colm_jax.storage import write_json


def tokens_key(run: RunContext) -> StageKey:
    """Return the training file and the tokenizers, not the models."""
    inputs = run.inputs
    hashes = {"data": inputs.file_hashes["data"], "tokenizer": inputs.tokenizer.digest}
    settings: dict[str, Any] = {"length": inputs.length}
    if inputs.config.experts:  # which may have views of their own; with one tokenizer, the same one
        base, *experts = inputs.outline.units.contexts
        known = [context for context in experts if context is not None]
        settings["contexts"] = [base, min(known)] if inputs.outline.shares_tokenizer else [base, *experts]
    return StageKey(hashes | {"shared_vocabulary": inputs.vocabulary_digest}, settings)


def write_tokens(run: RunContext, directory: Path) -> None:
    """Tokenise the training texts.

    Raises:
      UserError: as `tokenise`; experts that score online and have views of their own.
    """
    inputs = run.inputs
    with console.bar("tokenising", bytes_=True) as bar:
        arguments = inputs.files["data"], inputs.tokenizer, inputs.length, directory, inputs.allowed, bar.to
        on_first(lambda: tokenise(*arguments, units=inputs.outline.units))
    if inputs.config.online and any(view is not None for view in open_tokens(directory).views):
        raise UserError(f"{inputs.files['data']}: lines with views for the experts; Run.expert_scores must be 'cached'")


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
        "revision": (directory and revision(directory)) or "a local directory",
        "shared_vocabulary": inputs.vocabulary_digest,
    }
    if run.has("tokens") and (own := view_digest(run, model)) is not None:
        hashes |= {"view": own}
    settings: dict[str, Any] = {"dtype": config.expert_dtype or config.dtype if model else config.dtype}
    if directory is None:  # it may be asked for its own spans in place of scores
        facts = config.training.objective, config.training.seed, config.remote.positions, config.remote.window
        settings["labels"] = facts if config.training.objective == "weak" else None
    return StageKey(hashes, settings)


def write_scores(model: int, run: RunContext, directory: Path) -> None:
    """Score a model on the training texts."""
    inputs = run.inputs
    examples = training_examples(run)
    view = examples.view(model) if model else None
    with console.bar(f"scoring {Path(scores_name(model)).name}", len(examples.items)) as bar:
        if view is None or isinstance(view, Examples):
            decoder = inputs.load_expert(model - 1) if model else inputs.base.decoder
            arguments = examples, directory, inputs.scoring_vocabulary(model), bar.to, inputs.opening(model), view
            counts = score_to_directory(decoder, *arguments).counts
        else:
            _ask(run, model - 1, view, examples, directory, bar.to)
            counts = NO_PASSES
    _write_counts(directory, examples, counts)


def _ask(run: RunContext, m: int, view: Sequence[TextView], examples: Examples, directory: Path, bar: Progress) -> None:
    """Write the scores of expert m (from 0), an endpoint, a shard of texts at a time.

    One that gives no log-probabilities of prompts is asked for its own greedy spans, at a sample of places.

    Raises:
      UserError: such an endpoint, in a training that needs scores.
    """
    inputs, expert = run.inputs, run.inputs.endpoint(m)
    training, sample = inputs.config.training, inputs.config.remote.positions

    def scores(numbers: range, done: Callable[[int], None]) -> list[tuple[np.ndarray, ...]]:
        found = expert.score([view[number] for number in numbers], lambda texts, total: done(texts))
        return [in_layout(examples.items[number], scores) for number, scores in zip(numbers, found, strict=True)]

    def labels(numbers: range, done: Callable[[int], None]) -> list[tuple[np.ndarray, ...]]:
        share = math.ceil(sample * len(numbers) / len(view))
        seed = training.seed + numbers.start
        texts = [view[number] for number in numbers]
        found = expert.greedy_spans(
            texts, share, seed, lambda places, total: done(len(texts) * places // max(total, 1))
        )
        return [_labels(examples.items[number], spans) for number, spans in zip(numbers, found, strict=True)]

    if all(map(expert.scores, view)):
        scorer.write_scores(examples, directory, scores, bar)
        return
    if training.objective != "weak" or training.trainable != "gate":
        raise UserError(
            f"{expert.name}: gives no log-probabilities of prompts; train with --trainable gate --objective weak, "
            "whose labels come from its own spans, or use an endpoint that does"
        )
    if inputs.calibrates or inputs.test_split is not None:
        raise UserError(
            f"{expert.name}: gives no log-probabilities of prompts, so that no dev or test file can be scored; train "
            "without (colm train without --dev), and choose --threshold yourself"
        )
    console.note(f"{expert.name}: is asked for its own spans at {sample:,} places at most, since it scores no prompts")
    scorer.write_scores(examples, directory, labels, bar)


def _labels(base: Example, found: GreedySpans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unknown log-probabilities, "is argmax" and where that is known, in the base's places."""
    places = np.flatnonzero(base.counted[1:])[: len(found.asked)]  # without an end of text, which no expert writes
    log_prob = np.full(len(base.ids) - 1, np.nan, np.float32)
    is_argmax, known = np.zeros(len(base.ids) - 1, bool), np.zeros(len(base.ids) - 1, bool)
    is_argmax[places], known[places] = found.is_argmax, found.asked
    return log_prob, is_argmax, known


def scored_once(inputs: RunInputs) -> bool:
    """Return whether experts are scored before training, not inside its steps."""
    return not inputs.config.online


def needs_hidden(inputs: RunInputs) -> bool:
    """Return whether a gate is fitted to the hidden states of the base as given."""
    return inputs.config.gate_solver != "zero" or inputs.config.training.trainable == "gate"


def hidden_key(run: RunContext) -> StageKey:
    """Return the texts and the base. No expert, so that hidden states serve again when experts are exchanged; what the
    gate reads beside them is over the shared vocabulary.
    """
    inputs, config = run.inputs, run.inputs.config
    hashes = {"texts": texts_digest(run), "base": inputs.hashes["base"]}
    settings = {"dtype": config.dtype}
    if config.training.gate_inputs != "hidden":
        hashes |= {"shared_vocabulary": inputs.vocabulary_digest}
        settings |= {"gate_inputs": config.training.gate_inputs}
    return StageKey(hashes, settings)


def write_hidden(run: RunContext, directory: Path) -> None:
    """Write the base's final hidden states at the positions that count, and what else the gate reads there."""
    inputs, examples = run.inputs, training_examples(run)
    read = inputs.config.training.gate_inputs, inputs.scoring_vocabulary(0)
    with console.bar("hidden states", len(examples.items)) as bar:
        counts = hidden_to_directory(inputs.base.decoder, examples, directory, bar.to, *read)
    _write_counts(directory, examples, counts)


def _write_counts(directory: Path, examples: Examples, counts: PassCounts) -> None:
    """Write summary.json: texts, their tokens and the positions computed, also those of an interrupted run."""
    if is_first():
        write_json(directory / SUMMARY, {"texts": len(examples.items), **counts.as_json()})
