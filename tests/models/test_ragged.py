"""Several texts in one line: what each one gets is what it gets in a row of its own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.models.cache import BLOCK, KVCache
from colm_jax.models.config import Mixture
from colm_jax.models.ragged import Ragged
from tests.tiny import tiny_decoder

BATCH, READ, CHUNK, TOKENS = 4, 9, 16, 32
CASES = {
    "llama": {},
    "mixture": {"family": "mixtral", "mixture": Mixture(networks=4, active=2)},
    "window": {"family": "mistral", "windows": (4, 4)},
}


@jax.jit(static_argnames="graph")
def read(graph, state, tokens, cache, count):
    hidden, rows = nnx.merge(graph, state)(tokens, cache)
    return hidden, cache.write(rows, count)


@jax.jit(static_argnames="graph")
def read_line(graph, state, tokens, cache, counts):
    ragged = Ragged.of(counts, TOKENS, CHUNK)
    line = tokens[ragged.text, ragged.offset][None]
    hidden, rows = nnx.merge(graph, state)(line, cache, ragged=ragged)
    longer = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, BLOCK), (0, 0))), rows)
    return ragged.last(hidden), cache.write_line(longer, ragged)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("counts", [[3, 0, 16, 5], [0, 0, 0, 1], [8, 8, 8, 8], [1, 13, 2, 16]], ids=str)
def test_a_line_equals_rows(case, counts):
    graph, state = nnx.split(tiny_decoder(**CASES[case]).unstacked())
    rng = np.random.default_rng(0)
    before, tokens = (jnp.asarray(rng.integers(3, 32, (BATCH, n)), jnp.int32) for n in (READ, CHUNK))
    lengths, counts = jnp.array([9, 2, 7, 0], jnp.int32), jnp.array(counts, jnp.int32)
    empty = KVCache.empty(nnx.merge(graph, state).config, BATCH, 64, jnp.float32)
    _, cache = read(graph, state, before, empty, lengths)
    hidden, expected = read(graph, state, tokens, cache, counts)
    last, found = read_line(graph, state, tokens, cache, counts)
    for b in range(BATCH):
        if counts[b]:
            np.testing.assert_allclose(last[b], hidden[b, counts[b] - 1], atol=1e-5)
        end = int(lengths[b] + counts[b])
        assert int(found.lengths[b]) == end
        for one, two in zip(
            jax.tree.leaves((found.keys, found.values)), jax.tree.leaves((expected.keys, expected.values))
        ):
            np.testing.assert_allclose(one[b, :, :end], two[b, :, :end], atol=1e-5)


def test_nothing_read_is_nothing_written():
    graph, state = nnx.split(tiny_decoder().unstacked())
    cache = KVCache.empty(nnx.merge(graph, state).config, BATCH, 64, jnp.float32)
    ones = jax.tree.map(jnp.ones_like, (cache.keys, cache.values))
    cache = replace(cache, keys=ones[0], values=ones[1])
    _, found = read_line(graph, state, jnp.ones((BATCH, CHUNK), jnp.int32), cache, jnp.zeros(BATCH, jnp.int32))
    assert all((np.asarray(x) == 1).all() for x in jax.tree.leaves((found.keys, found.values)))
