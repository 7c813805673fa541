"""Scores of units: sums over tokens, normalised by the opening mass over all that could be written in their place."""

import itertools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.data.records import Example, Examples
from colm_jax.parallel import batch_sharding, make_mesh, on_mesh
from colm_jax.scoring import NEVER, UnitScores, load_scores, score_examples, score_to_directory, score_units
from colm_jax.scoring.head import score_head, unit_token_scores
from colm_jax.scoring.units import in_layout, unit_borders, unit_scores
from colm_jax.text.spans import Opening
from tests.tiny import tiny_decoder

BOS, EOS, A, B, SPACE_A, SPACE_B = range(6)
# Tokens with a space open a span, but not behind B; an end of text always does; BOS and the others never.
OPENING = Opening(
    after=np.array([1, 1, 1, 0, 1, 1]),
    first=np.array([0, 1, 0, 0, 2, 2]),
    table=np.array([[False, True, False], [False, True, True]]),
)


def example(ids, starts, targets=None) -> Example:
    starts = np.isin(np.arange(len(ids)), starts)
    targets = np.arange(len(ids)) >= np.argmax(starts) if targets is None else np.array(targets, bool)
    return Example(np.array(ids, np.int32), targets, starts)


@pytest.fixture(scope="module")
def decoder():
    decoder = tiny_decoder(vocab_size=6, context=32)
    decoder.head[...] *= 1.5  # unequal probabilities
    return decoder


@pytest.mark.parametrize("before", [(BOS, A, SPACE_B), (BOS, SPACE_A)])
def test_scores_of_all_that_may_follow_a_unit_sum_to_one(decoder, before):
    spans = [
        span
        for depth in range(1, 4)
        for span in itertools.product(range(6), repeat=depth)
        if EOS not in span
        and OPENING.opens(before[-1], span[0])
        and not any(OPENING.opens(*pair) for pair in pairwise(span))
    ]
    # Something follows each span, which gives its last S: whatever it is.
    texts = [example([*before, *span, EOS], [1, len(before)]) for span in spans]
    for text in texts:
        text.targets[-1] = False
    end = example([*before, EOS], [1, len(before)])
    scored = score_units(decoder, OPENING, [*texts, end])
    values = np.array([scores.log_prob[-1] for scores in scored])
    assert all(len(scores.log_prob) == 2 for scores in scored)
    # Longer ones are what is left: the longest of these spans, and no token that opens another.
    longest = Examples(tuple(text for text, span in zip(texts, spans) if len(span) == 3), 0)
    tokens = score_examples(decoder, longest, opening=OPENING)
    left = 0.0
    for log_prob, mass in zip(tokens.log_prob, tokens.log_opening):
        inside = log_prob[len(before) - 1 :][:3].sum() - mass[len(before) - 1]
        left += np.exp(inside) * (1 - np.exp(mass[len(before) + 2]))
    assert left > 0.01  # else the test would not see a wrong S
    np.testing.assert_allclose(np.exp(values).sum() + left, 1, atol=1e-5)


def slow_scores(text: Example, log_prob, log_opening) -> list[float]:
    """The definition, a unit at a time."""
    found = []
    starts = [i for i, start in enumerate(text.starts) if start]
    for k, start in enumerate(starts):
        if start == 0 or not text.targets[start]:
            continue
        stop = start + 1
        while stop < len(text.ids) and not text.starts[stop] and text.targets[stop]:
            stop += 1
        value = sum(float(log_prob[i - 1]) for i in range(start, stop))
        if stop < len(text.ids):
            value += float(log_opening[stop - 1])
        if k > 0:
            value -= float(log_opening[start - 1])
        found.append(value)
    return found


TEXTS = {
    "a prompt, three spans, an end of text as a unit": example([0, 3, 4, 2, 3, 5, 2, 1], [2, 5, 6, 7]),
    "a guest's end of text, which does not count": example([0, 3, 4, 2, 1], [2, 3], [0, 0, 1, 1, 0]),
    "cut": example([0, 4, 2, 5, 3], [1, 3]),
    "no first token: its span does not count": example([4, 2, 5, 3, 4], [0, 2, 4], [0, 0, 1, 1, 1]),
    "one span": example([0, 4], [1]),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_unit_scores_equal_the_definition(text):
    rng = np.random.default_rng(0)
    log_prob, log_opening = -rng.random((2, len(text.ids) - 1)).astype(np.float32)
    right = rng.random(len(text.ids) - 1) < 0.7
    found = unit_scores(text, log_prob, right, log_opening)
    np.testing.assert_allclose(found.log_prob, slow_scores(text, log_prob, log_opening), atol=1e-6)
    starts, stops = unit_borders(text)
    assert found.is_argmax.tolist() == [all(right[a - 1 : b - 1]) for a, b in zip(starts, stops)]
    assert len(starts) == text.counted[1:].sum()


def test_where_every_token_is_a_unit_scores_stay_those_of_tokens(decoder):
    text = Example(np.array([0, 3, 4, 2], np.int32), np.array([False, False, True, True]))
    tokens = score_examples(decoder, Examples((text,), 0))
    (found,) = score_units(decoder, None, [text])
    np.testing.assert_array_equal(found.log_prob, tokens.log_prob[0][1:])
    np.testing.assert_array_equal(found.is_argmax, tokens.is_argmax[0][1:])
    every = score_examples(decoder, Examples((text,), 0), opening=Opening.every_token(6))
    assert np.abs(every.log_opening[0]).max() < 1e-30  # S is 1


def test_opening_mass_is_finite_where_nothing_opens_or_is_allowed():
    logits = jnp.array([[[0.0, -jnp.inf, 1.0, 2.0, -jnp.inf, -jnp.inf], [-jnp.inf, 1.0, -jnp.inf, -jnp.inf, 0.0, 0.0]]])

    def mass(logits):
        return unit_token_scores(logits, jnp.array([[0, 1]]), jnp.array([[A, A]]), OPENING)[2]

    found, gradient = jax.value_and_grad(lambda x: mass(x).sum())(logits)
    assert mass(logits)[0, 0] < -80 and abs(mass(logits)[0, 1]) < 1e-30
    assert np.isfinite(found) and np.isfinite(gradient).all()


def test_scores_in_the_bases_places_end_with_what_an_expert_never_writes():
    base = TEXTS["a prompt, three spans, an end of text as a unit"]
    three = UnitScores(np.array([-1.0, -2.0, -3.0], np.float32), np.array([True, False, True]))
    log_prob, is_argmax = in_layout(base, three)
    assert log_prob.tolist() == [0, -1, 0, 0, -2, -3, NEVER]
    assert is_argmax.tolist() == [False, True, False, False, False, True, False]
    with pytest.raises(ValueError, match="2 scores for a text of 4 units"):
        in_layout(base, UnitScores(three.log_prob[:2], three.is_argmax[:2]))


def test_scores_of_another_tokenizer_are_stored_in_the_bases_places_and_resumed(decoder, tmp_path):
    rng = np.random.default_rng(0)
    base, own = [], []
    for _ in range(150):  # two shards
        spans = rng.integers(1, 4, rng.integers(1, 6))
        starts = np.cumsum(spans) - spans + 1
        base.append(example([BOS, *rng.integers(2, 6, spans.sum()), EOS], [*starts, spans.sum() + 1]))
        ids = [BOS, *rng.integers(2, 6, len(spans)), EOS]  # a token a span
        own.append(example(ids, range(1, len(spans) + 1), [0, *[1] * len(spans), 0]))
    base, own = Examples(tuple(base), 0), Examples(tuple(own), 0)
    found = score_to_directory(decoder, base, tmp_path, opening=OPENING, own=own)
    scored = score_units(decoder, OPENING, own)
    for text, units, log_prob, bits in zip(base.items, scored, found.log_prob, found.is_argmax, strict=True):
        one, other = in_layout(text, units)
        np.testing.assert_allclose(log_prob, one, atol=1e-5)
        np.testing.assert_array_equal(bits, other)
    files = {path: path.read_bytes() for path in tmp_path.glob("*.npz")}
    (tmp_path / "shard-00001.npz").unlink()
    score_to_directory(decoder, base, tmp_path, opening=OPENING, own=own)
    assert len(files) == 2 and files == {path: path.read_bytes() for path in tmp_path.glob("*.npz")}
    assert len(load_scores(tmp_path, base).log_prob) == 150


def test_packed_texts_have_the_scores_of_each_alone(decoder):
    texts = [text for text in TEXTS.values()] * 3
    together = score_units(decoder, OPENING, texts)
    for text, scores in zip(texts, together, strict=True):
        (alone,) = score_units(decoder, OPENING, [text])
        np.testing.assert_allclose(scores.log_prob, alone.log_prob, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_a_sharded_head_has_the_same_opening_mass(sizes):
    decoder = tiny_decoder(depth=1, vocab_size=35)
    decoder.embedding[...] *= 40.0
    graph, state = nnx.split(decoder)
    rng = np.random.default_rng(0)
    opening = Opening(rng.integers(0, 3, 35), rng.integers(0, 4, 35), rng.random((3, 4)) < 0.5)
    tokens = rng.integers(0, 35, (8, 12)).astype(np.int32)

    def loss(state, spread=None):
        decoder = nnx.merge(graph, state)
        hidden, _ = decoder(tokens[:, :-1], spread=spread)
        scores = score_head(decoder, hidden, tokens, None, opening, logit_bytes=4 * 8 * 11 * 4)
        found = scores.log_prob, scores.is_argmax, scores.log_opening
        return jnp.mean(jnp.sin(found[0]) + jnp.cos(found[2])), found

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames="spread")
    (_, whole), gradient = step(state)
    mesh = make_mesh(*sizes)
    (_, found), other = step(on_mesh(state, mesh), spread=batch_sharding(mesh))
    for one, two in zip(whole, found):
        np.testing.assert_allclose(one, two, atol=2e-5)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(other)):
        np.testing.assert_allclose(one, two, atol=1e-5)
