"""Chunked over positions, the head gives the same scores and gradients, and never holds all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.scoring.head import head_scores, token_scores
from tests.tiny import tiny_decoder

B, T, V = 3, 37, 32
WHOLE = 4 * B * T * V  # bytes of all logits


def problem(words=V):
    graph, state = nnx.split(tiny_decoder(vocab_size=words))
    hidden = jax.random.normal(jax.random.key(0), (B, T, 32))
    tokens = np.random.default_rng(0).integers(0, V - 4, (B, T))
    return graph, state, hidden, tokens


@pytest.mark.parametrize("logit_bytes", [1, 4 * B * V * 5, 4 * B * V * 36, WHOLE])
@pytest.mark.parametrize("shared", [False, True])
def test_scores_and_gradients_equal_the_plain_ones(logit_bytes, shared):
    graph, state, hidden, tokens = problem()
    allowed = np.arange(V) < V - 4 if shared else None

    def plain(state, hidden):
        return token_scores(nnx.merge(graph, state).logits(hidden, allowed), tokens)

    def chunked(state, hidden):
        return head_scores(nnx.merge(graph, state), hidden, tokens, allowed, logit_bytes)

    for one, two in zip(jax.jit(plain)(state, hidden), jax.jit(chunked)(state, hidden), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    gradients = [
        jax.jit(jax.grad(lambda s, h, f=f: jnp.sum(jnp.sin(f(s, h)[0])), argnums=(0, 1)))(state, hidden)
        for f in (plain, chunked)
    ]
    for one, two in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_compiled_program_holds_no_more_than_a_chunk_of_logits(gradient):
    words = 8192
    graph, state, hidden, tokens = problem(words)

    def total(state, hidden, logit_bytes):
        return jnp.sum(head_scores(nnx.merge(graph, state), hidden, tokens, None, logit_bytes)[0])

    def temporaries(logit_bytes):
        function = jax.grad(total) if gradient else total
        compiled = jax.jit(function, static_argnums=2).lower(state, hidden, logit_bytes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    position = 4 * B * words
    assert temporaries(10**12) >= T * position
    head = 4 * 32 * words * gradient  # its gradient is summed up over the chunks
    assert temporaries(4 * position) < 4 * 4 * position + 3 * head
