"""A head that is split over a mesh gives the scores, greedy choices and gradients of the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.models.uncertainty import uncertainty
from colm_jax.parallel import batch_sharding, make_mesh, on_mesh
from colm_jax.scoring.head import head_argmax, head_scores, head_uncertainty, token_scores
from tests.tiny import tiny_decoder

B, T = 8, 11
CHUNK = 4 * B * T * 4  # bytes of the logits of four ids: a device with more of them takes several chunks


@jax.jit(static_argnames=("graph", "sizes"))
def measured(graph, state, tokens, allowed, sizes):
    """Return scores, whether they are of the argmax, greedy choices, and the gradient of every weight."""

    def loss(state):
        decoder = nnx.merge(graph, state)
        spread = None if sizes is None else batch_sharding(make_mesh(*sizes))
        hidden, _ = decoder(tokens[:, :-1], spread=spread)
        if sizes is None:
            logits = decoder.logits(hidden, allowed)
            log_prob, right = token_scores(logits, tokens[:, 1:])
            choice = jnp.argmax(logits, axis=-1)
        else:
            log_prob, right = head_scores(decoder, hidden, tokens[:, 1:], allowed, CHUNK)
            choice = head_argmax(decoder, hidden, allowed, CHUNK)
        return jnp.mean(jnp.sin(log_prob)), (log_prob, right, choice)

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(state)
    return found, gradient


@pytest.mark.parametrize(
    ("sizes", "fields", "shared"),
    [
        ((1, 8, 1), {"tied": True}, True),
        ((1, 8, 1), {"vocab_size": 37, "logit_softcap": 2.0}, False),
        ((2, 4, 1), {"vocab_size": 35, "tied": True}, True),
        ((2, 2, 2), {"logit_softcap": 2.0}, True),
        ((2, 2, 2), {"vocab_size": 35, "tied": True, "logit_divisor": 0.5}, False),
        ((2, 2, 2), {"vocab_size": 38}, False),
        ((1, 1, 8), {"tied": True}, True),
    ],
    ids=str,
)
def test_a_sharded_head_equals_the_whole(sizes, fields, shared):
    decoder = tiny_decoder(depth=1, **fields)
    decoder.embedding[...] *= 40.0  # unequal probabilities
    graph, state = nnx.split(decoder)
    rng, vocab_size = np.random.default_rng(0), decoder.config.vocab_size
    allowed = rng.random(vocab_size - 5) < 0.8 if shared else None
    ids = np.arange(vocab_size) if allowed is None else np.flatnonzero(allowed)
    tokens = rng.choice(ids, (B, T + 1)).astype(np.int32)
    (log_prob, right, choice), gradient = measured(graph, state, tokens, allowed, None)
    found, other = measured(graph, on_mesh(state, make_mesh(*sizes)), tokens, allowed, sizes)
    np.testing.assert_allclose(found[0], log_prob, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[1], right)
    np.testing.assert_array_equal(found[2], choice)
    for (path, want), (_, got) in zip(*map(nnx.to_flat_state, (gradient, other)), strict=True):
        np.testing.assert_allclose(got[...], want[...], rtol=0, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_of_equal_logits_the_smallest_id_is_chosen(sizes):
    graph, state = nnx.split(tiny_decoder(depth=1))
    rng = np.random.default_rng(0)
    few = rng.integers(-1, 2, (32, 8)).astype(np.float32)  # integers, so that equal columns have equal logits
    state["head"][...] = few[:, rng.integers(0, 8, 32)]
    hidden = rng.integers(-2, 3, (B, T, 32)).astype(np.float32)
    allowed = np.arange(32) >= 3
    choose = jax.jit(lambda state, hidden: head_argmax(nnx.merge(graph, state), hidden, allowed))
    expected = jnp.argmax(nnx.merge(graph, state).logits(hidden, allowed), axis=-1)
    np.testing.assert_array_equal(choose(on_mesh(state, make_mesh(*sizes)), hidden), expected)
    assert len(np.unique(expected)) > 3


def test_texts_that_the_mesh_does_not_split_evenly_are_scored_too():
    graph, state = nnx.split(tiny_decoder(depth=1))
    tokens = np.random.default_rng(0).integers(0, 32, (3, T + 1)).astype(np.int32)
    (log_prob, right, _), _ = measured(graph, state, tokens, None, None)
    (found, same, _), _ = measured(graph, on_mesh(state, make_mesh(1, 8, 1)), tokens, None, (1, 8, 1))
    np.testing.assert_allclose(found, log_prob, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(same, right)


@pytest.mark.parametrize(("sizes", "words"), [((1, 8, 1), 37), ((2, 2, 2), 38), ((1, 1, 8), 32)], ids=str)
def test_uncertainties_are_those_of_the_whole_vocabulary(sizes, words):
    decoder = tiny_decoder(depth=1, vocab_size=words)
    decoder.head[...] *= 8.0
    graph, state = nnx.split(decoder)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(B, T, 32)).astype(np.float32)
    allowed = rng.random(words - 3) < 0.8
    measure = jax.jit(lambda state, hidden: head_uncertainty(nnx.merge(graph, state), hidden, allowed, CHUNK))
    whole = uncertainty(decoder.logits(hidden, allowed))
    assert np.ptp(np.asarray(whole), axis=(0, 1)).min() > 0.5
    np.testing.assert_allclose(measure(state, hidden), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(measure(on_mesh(state, make_mesh(*sizes)), hidden), whole, rtol=1e-5, atol=1e-5)
