"""Training by spans: the step's scores of units are those of scoring, and its loss is the objective over them."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from colm_jax.checkpoints.team import make_gate
from colm_jax.data.batches import collate, unit_marks
from colm_jax.data.records import Example, Examples
from colm_jax.labels import weak_labels
from colm_jax.parallel import make_mesh
from colm_jax.scoring import NEVER, Scores, score_examples, score_to_directory, units_of
from colm_jax.scoring.units import unit_borders, unit_scores
from colm_jax.settings.training import Lora, Training
from colm_jax.text.spans import Opening
from colm_jax.training.step import unit_sums
from colm_jax.training.trainer import train
from tests.tiny import tiny_decoder

V = 32
_RNG = np.random.default_rng(7)
OPENING = Opening(_RNG.integers(0, 3, V), _RNG.integers(0, 4, V), _RNG.random((3, 4)) < 0.5)
STILL = Training(learning_rate=0.0, batch_size=8, epochs=1, checkpoint_every=10)


def texts(count, seed=0) -> Examples:
    """Texts of spans, some behind a prompt, some finished by a unit of one token, some with spans that do not count."""
    rng, items = np.random.default_rng(seed), []
    for i in range(count):
        n = int(rng.integers(6, 30))
        prompt = int(rng.integers(1, 4))
        starts = rng.random(n) < 0.5
        starts[:prompt], starts[prompt] = False, True
        targets = np.arange(n) >= prompt
        if i % 3 == 0:  # the first span does not count
            targets &= np.cumsum(starts) > 1
        items.append(Example(rng.integers(3, V, n).astype(np.int32), targets, starts))
    return Examples(tuple(items), 0)


def expert_scores(examples) -> Scores:
    """Random scores in the base's places; some units the expert never writes."""
    rng, found, bits = np.random.default_rng(1), [], []
    for item in examples.items:
        counted = item.counted[1:]
        found.append(np.where(counted, -3 * rng.random(len(counted)), 0).astype(np.float32))
        last = np.flatnonzero(counted)[-1:]
        found[-1][last] = NEVER
        bits.append(counted & (rng.random(len(counted)) < 0.5))
    return Scores(tuple(found), tuple(bits))


@pytest.fixture(scope="module")
def team():
    base = tiny_decoder(vocab_size=V)
    kernel = np.random.default_rng(2).normal(size=(32, 1)).astype(np.float32)
    return base, kernel


def losses(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def run(team, directory, settings=STILL, mesh=None, examples=None):
    base, kernel = team
    examples = texts(8) if examples is None else examples
    tokens = score_examples(base, examples, opening=OPENING)
    scores = score_to_directory(base, examples, directory / "scores", opening=OPENING)
    arguments = examples, scores, [expert_scores(examples)], settings, directory
    found = train(base, make_gate(kernel), *arguments, mesh=mesh, opening=OPENING)
    return found, tokens, scores


def test_sums_in_a_packed_batch_equal_those_of_each_text():
    examples = texts(7)
    rows, shape = [[0, 1, 2], [3], [4, 5, 6], []], (4, 96)
    marks = unit_marks(examples.items, rows, shape)
    rng = np.random.default_rng(0)
    log_prob, log_opening = -rng.random((2, *shape)).astype(np.float32)
    found = np.asarray(unit_sums(jnp.asarray(log_prob), jnp.asarray(log_opening), marks))
    mask = collate(examples.items, rows, 4, 97).mask
    assert mask.sum() == examples.tokens
    for b, row in enumerate(rows):
        start = 0
        for number in row:
            text = examples.items[number]
            here = slice(start, start + len(text.ids) - 1)
            slow = unit_scores(text, log_prob[b, here], np.zeros(len(text.ids) - 1, bool), log_opening[b, here])
            first = unit_borders(text)[0] - 1
            np.testing.assert_allclose(found[b, here][first], slow.log_prob, atol=1e-5)
            start += len(text.ids)


def test_a_long_rows_last_units_are_as_accurate_as_its_first():
    count = 4096
    item = Example(np.ones(count, np.int32), np.arange(count) > 0, np.arange(count) % 3 == 1)
    marks = unit_marks([item], [[0]], (1, count - 1))
    log_prob = np.full((1, count - 1), -1e3, np.float32)
    log_prob[0, -6:] = -1e-3
    found = np.asarray(unit_sums(jnp.asarray(log_prob), jnp.zeros((1, count - 1)), marks))[0]
    starts, stops = unit_borders(item)
    assert stops[-1] == count and starts[-2] - 1 >= count - 7
    np.testing.assert_allclose(found[starts[-2:] - 1], log_prob[0, -6:].sum() * (stops - starts)[-2:] / 6, rtol=1e-5)


def joint(team, examples, tokens):
    """log P(Z) and log P(Z) + A of all units that count, from scores of tokens and the definition."""
    base, kernel = team
    units = units_of(tokens, examples)
    hidden = score_examples(base, examples, gate=make_gate(kernel)).gate_logits
    scores, writers = [], []
    for item, own, logits, log_prob in zip(examples.items, units, hidden, expert_scores(examples).log_prob):
        kept = item.counted[1:]
        scores.append(np.column_stack([own.log_prob, log_prob[kept]]))
        both = np.column_stack([np.zeros(kept.sum()), logits[kept]]).astype(np.float64)
        writers.append(both - logsumexp(both, axis=1, keepdims=True))
    return np.concatenate(writers), np.concatenate(scores).astype(np.float64)


@pytest.mark.parametrize("packing", [True, False])
def test_the_steps_loss_is_the_marginal_over_units(team, tmp_path, packing):
    _, tokens, _ = run(team, tmp_path, dataclasses.replace(STILL, packing=packing))
    writers, scores = joint(team, texts(8), tokens)
    (line,) = losses(tmp_path)
    assert line["positions"] == len(scores) == texts(8).tokens
    np.testing.assert_allclose(line["loss"], -logsumexp(writers + scores, axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(line["expected_deferral"], 1 - np.exp(writers[:, 0]).mean(), rtol=1e-5)


def test_weak_loss_and_labels_go_by_units(team, tmp_path):
    _, tokens, base = run(team, tmp_path, dataclasses.replace(STILL, objective="weak"))
    examples = texts(8)
    writers, scores = joint(team, examples, tokens)
    kept = [item.counted[1:] for item in examples.items]
    bits = [np.concatenate([b[k] for b, k in zip(s.is_argmax, kept)]) for s in (base, expert_scores(examples))]
    labels = weak_labels(bits[0], bits[1][:, None], "a")[:, 0]
    bce = -np.where(labels, 5.0 * writers[:, 1], writers[:, 0])
    np.testing.assert_allclose(losses(tmp_path)[0]["loss"], (-2 * scores[:, 0] + bce).mean() / 3, rtol=1e-5)


def test_sft_is_cross_entropy_of_tokens(team, tmp_path):
    _, tokens, _ = run(team, tmp_path, dataclasses.replace(STILL, objective="sft"))
    kept = [item.targets[1:] for item in texts(8).items]
    values = np.concatenate([log_prob[k] for log_prob, k in zip(tokens.log_prob, kept)])
    (line,) = losses(tmp_path)
    assert line["positions"] == len(values)
    np.testing.assert_allclose(line["loss"], -values.mean(), rtol=1e-5)


def test_em_and_marginal_have_the_same_gradient_over_units(team, tmp_path):
    norms = []
    for objective in ("marginal", "em"):
        run(team, tmp_path / objective, dataclasses.replace(STILL, objective=objective))
        norms.append(losses(tmp_path / objective)[0]["gradient_norm"])
    assert np.isfinite(norms).all() and norms[0] > 0
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_training_by_units_lowers_the_loss(team, tmp_path, trainable):
    settings = Training(learning_rate=3e-3, batch_size=8, epochs=8, trainable=trainable, lora=Lora(rank=2))
    run(team, tmp_path, settings, examples=texts(16))
    found = [line["loss"] for line in losses(tmp_path)]
    assert len(found) == 16 and found[-1] < found[0] - 0.05


def test_a_mesh_trains_by_units_as_one_device(team, tmp_path):
    settings = Training(learning_rate=3e-3, batch_size=8, epochs=1)
    values = []
    for name, mesh in (("one", None), ("mesh", make_mesh(2, 2, 2))):
        run(team, tmp_path / name, settings, mesh, texts(16))
        values.append([(line["loss"], line["gradient_norm"]) for line in losses(tmp_path / name)])
    np.testing.assert_allclose(values[0], values[1], rtol=2e-4)
