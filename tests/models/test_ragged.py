"""Several texts' new tokens in one line give what a pass over a grid of texts gives, and the same rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.models.cache import BLOCK, KVCache
from colm_jax.models.config import Mixture
from colm_jax.models.ragged import Ragged
from tests.models.mixed import KINDS, mixed_decoder
from tests.tiny import tiny_decoder

SIZE, CHUNK, TOKENS = 64, 16, 40
READ = np.array([9, 0, 33, 20, 3])  # tokens read before
COUNTS = np.array([5, 16, 0, 1, 11])  # new ones: none, one, a whole chunk


@jax.jit(static_argnames="graph")
def on_grid(graph, state, tokens, cache, counts):
    hidden, rows = nnx.merge(graph, state)(tokens, cache)
    return hidden, cache.write(rows, counts)


@jax.jit(static_argnames="graph")
def in_line(graph, state, tokens, cache, counts):
    ragged = Ragged.of(counts, TOKENS, CHUNK)
    line = tokens[ragged.text, ragged.offset][None]
    hidden, rows = nnx.merge(graph, state)(line, cache, ragged=ragged)
    rows = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, BLOCK), (0, 0))), rows)
    return ragged.at(hidden, ragged.counts[:, None] - 1)[:, 0], cache.write_line(rows, ragged)


def read_before(decoder, order):
    graph, state = nnx.split(decoder)
    tokens = np.random.default_rng(0).integers(3, 32, (5, SIZE)).astype(np.int32)[order]
    cache = KVCache.empty(decoder.config, 5, SIZE + SIZE, jnp.float32)
    cache = on_grid(graph, state, tokens, cache, jnp.asarray(READ[order], jnp.int32))[1]
    new = np.stack([row[n : n + CHUNK] for row, n in zip(tokens, READ[order])])
    return graph, state, jnp.asarray(new), cache


IN_ORDER = [0, 1, 2, 3, 4]
CASES = {
    "plain": (tiny_decoder, IN_ORDER),
    "another order": (tiny_decoder, [3, 4, 0, 2, 1]),
    "window": (partial(tiny_decoder, windows=(8, None)), IN_ORDER),
    "mixture": (partial(tiny_decoder, mixture=Mixture(networks=4, active=2)), IN_ORDER),
    **{kind: (partial(mixed_decoder, kind), IN_ORDER) for kind in KINDS},
}


@pytest.mark.parametrize("case", CASES)
def test_a_line_equals_a_grid(case):
    made, order = CASES[case]
    graph, state, new, cache = read_before(made().unstacked(), order)
    counts = jnp.asarray(COUNTS[order], jnp.int32)
    grid, expected = on_grid(graph, state, new, cache, counts)
    last, found = in_line(graph, state, new, cache, counts)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    for b, count in enumerate(COUNTS[order]):
        if count:
            np.testing.assert_allclose(last[b], grid[b, count - 1], rtol=0, atol=2e-5)
        end = int(expected.lengths[b])
        for one, two in zip((*found.keys, *found.values), (*expected.keys, *expected.values)):
            np.testing.assert_allclose(one[b, :, :end], two[b, :, :end], rtol=0, atol=2e-5)


def test_where_nothing_is_read_nothing_is_written():
    graph, state, new, cache = read_before(tiny_decoder().unstacked(), [0, 1, 2, 3, 4])
    _, found = in_line(graph, state, new, cache, jnp.zeros(5, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, found, cache)
