"""Packed rows give each text what it gets alone: scores, hidden states, greedy choices, candidates, errors."""

import json
from functools import partial

import jax
import numpy as np
import pytest

import colm_jax.scoring.passes as passes
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.checkpoints.team import make_gate
from colm_jax.data.records import Example, Examples
from colm_jax.errors import UserError
from colm_jax.models.rope_config import DynamicNTK, Rope
from colm_jax.parallel import make_mesh
from colm_jax.scoring import (
    greedy_choices,
    hidden_to_directory,
    load_scores,
    open_hidden,
    score_examples,
    score_to_directory,
)
from colm_jax.scoring.candidates import find_candidates
from tests.models.families import write_family
from tests.models.mixed import mixed_decoder
from tests.tiny import run, tiny_decoder

WORDS = 28  # ids of the texts, and of the shared vocabulary


def texts(lengths, words=WORDS, seed=0):
    rng = np.random.default_rng(seed)
    return Examples(tuple(Example(rng.integers(0, words, n).astype(np.int32), np.arange(n) > 0) for n in lengths), 0)


def alone(decoder, examples):
    """The slow way, a text a row: each text's hidden states and logits, padded on the right to one length."""
    length, found = max(examples.lengths), []
    for item in examples.items:
        row = np.zeros((1, length), np.int32)
        row[0, : len(item.ids)] = item.ids
        hidden, logits = run(decoder, row)
        found.append((np.asarray(hidden[0, : len(item.ids) - 1]), np.asarray(logits[0, : len(item.ids) - 1])))
    return found


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def check_scores(decoder, examples):
    """Scores of packed rows are those of texts alone; return how many texts the fullest row has."""
    kernel = np.random.default_rng(1).normal(size=(decoder.config.width, 2)).astype(np.float32)
    scores = score_examples(decoder, examples, gate=make_gate(kernel))
    for i, (hidden, logits) in enumerate(alone(decoder, examples)):
        log_p, ids = log_softmax(logits), examples.items[i].ids[1:]
        np.testing.assert_allclose(scores.log_prob[i], log_p[np.arange(len(ids)), ids], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(scores.is_argmax[i], logits.argmax(-1) == ids)
        np.testing.assert_allclose(scores.gate_logits[i], hidden @ kernel, atol=1e-4)
    plan = passes.Passes.of(decoder, examples)
    rows = [row for shard in plan.shards for _, rows in plan.packing.batches(examples.lengths, shard) for row in rows]
    return max(map(len, rows))


@pytest.mark.parametrize("family", ["gemma2", "phi3", "llama4", "deepseek-v3", "gpt-oss"])
def test_families_score_packed_texts_as_texts_alone(tmp_path, family):
    """Windows, chunks, soft caps, sinks, long RoPE, temperature, latent attention, mixtures."""
    decoder = load_model(write_family(tmp_path, family), "float32", make_mesh())[0]
    assert check_scores(decoder, texts([300, 2, 190, 1, 120, 150, 5, 230, 90], words=61)) > 2


@pytest.mark.parametrize("kind", ["chunks, three runs", "sinks and windows"])
def test_mixed_layers_score_packed_texts_as_texts_alone(kind):
    assert check_scores(mixed_decoder(kind), texts([40, 2, 19, 60, 1, 12, 5, 23, 9])) > 2


def test_rotary_positions_that_grow_with_the_text_stay_those_of_the_context():
    """Packed rows longer than the context would stretch the frequencies of texts within it."""
    decoder = tiny_decoder(rope=Rope(500.0, factor=4.0, scaling=DynamicNTK(128)), context=128)
    assert check_scores(decoder, texts([60] * 20 + [128])) == 2


def test_no_texts_have_no_scores():
    scores = score_examples(tiny_decoder(), texts([]))
    assert (scores.log_prob, scores.counts) == ((), passes.NO_PASSES)


@pytest.mark.parametrize("lengths", [[20], [2], [1, 2, 2, 1], [200, 3]], ids=str)
def test_small_data_sets_and_texts_beyond_the_context(lengths):
    check_scores(tiny_decoder(), texts(lengths))


@pytest.fixture
def examples(monkeypatch):
    """Three shards, with the loss on some of the tokens."""
    monkeypatch.setattr(passes, "SHARD_TEXTS", 8)
    found = texts(np.random.default_rng(3).integers(2, 90, 20))
    rng = np.random.default_rng(4)
    return Examples(
        tuple(Example(item.ids, item.targets & (rng.random(len(item.ids)) < 0.7)) for item in found.items), 0
    )


def test_hidden_states_and_greedy_choices_are_those_of_texts_alone(tmp_path, examples):
    decoder, allowed = tiny_decoder(), np.arange(32) < WORDS
    hidden_to_directory(decoder, examples, tmp_path)
    states, choices = np.concatenate(open_hidden(tmp_path, examples)), greedy_choices(decoder, examples, allowed)
    expected = alone(decoder, examples)
    counted = [hidden[item.targets[1:]] for (hidden, _), item in zip(expected, examples.items, strict=True)]
    np.testing.assert_allclose(states, np.concatenate(counted), atol=1e-5)
    for (_, logits), found in zip(expected, choices, strict=True):
        np.testing.assert_array_equal(found, logits[:, :WORDS].argmax(-1))


def test_candidates_of_several_shards_are_those_of_texts_alone(examples):
    decoder = tiny_decoder()
    parts = [(item.ids[:1].tolist(), item.ids[1:].tolist()) for item in examples.items]
    found = find_candidates(decoder, *zip(*parts), np.arange(32) < WORDS)
    for (_, logits), views, item in zip(alone(decoder, examples), found, examples.items, strict=True):
        log_p = log_softmax(logits[:, :WORDS])
        np.testing.assert_array_equal(views.tokens, np.argsort(-log_p, axis=-1)[:, :3])
        np.testing.assert_allclose(views.written, np.exp(log_p[np.arange(len(log_p)), item.ids[1:]]), atol=1e-6)


def test_a_rerun_after_a_lost_shard_counts_the_work_of_all(tmp_path, examples):
    decoder = tiny_decoder()
    whole = score_to_directory(decoder, examples, tmp_path)
    (tmp_path / "shard-00001.npz").unlink()
    again = score_to_directory(decoder, examples, tmp_path)
    assert whole.counts == again.counts == score_examples(decoder, examples).counts
    assert whole.counts.tokens == examples.lengths.sum()
    assert load_scores(tmp_path, examples).log_prob[9].tobytes() == whole.log_prob[9].tobytes()


def test_work_is_the_sizes_of_the_batches_that_pass(examples):
    plan = passes.Passes.of(tiny_decoder(), examples)
    sizes = [packed.batch.mask.size for shard in plan.shards for packed in plan.shard(shard)]
    assert plan.counts.positions == sum(sizes)
    assert plan.counts.as_json() == json.loads(
        json.dumps({"tokens": int(examples.lengths.sum()), "positions": sum(sizes)})
    )


def test_an_overflow_names_its_own_text_not_those_of_its_row(tmp_path, examples):
    """NaN of one text reaches every text of its row."""
    decoder, items = tiny_decoder(), list(examples.items)
    for number in (11, 14):
        ids = items[number].ids.copy()
        ids[0] = 31
        items[number] = Example(ids, items[number].targets)
    decoder.embedding[...] = decoder.embedding[...].at[31].set(np.nan)
    broken = Examples(tuple(items), 0)
    parts = [(item.ids[:1].tolist(), item.ids[1:].tolist()) for item in broken.items]
    for compute in (
        partial(score_examples, decoder, broken),
        partial(score_to_directory, decoder, broken, tmp_path / "scores"),
        partial(hidden_to_directory, decoder, broken, tmp_path / "hidden"),
        partial(find_candidates, decoder, *zip(*parts), np.ones(32, bool)),
    ):
        with pytest.raises(UserError, match=r"^text 1[14]: .* NaN: its activations overflow in float32; use float32"):
            compute()
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["shard-00000.npz"]
