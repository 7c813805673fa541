"""Reading through the KV cache, in chunks of any size, equals one plain pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.models.cache import KVCache, no_rows
from tests.tiny import run, tiny_config, tiny_decoder

LENGTHS = np.array([97, 5, 64, 33])
TOKENS = np.random.default_rng(0).integers(3, 32, (4, 97)).astype(np.int32)


@jax.jit(static_argnames="graph")
def read(graph, state, tokens, cache, count):
    hidden, rows = nnx.merge(graph, state)(tokens, cache)
    return hidden, cache.write(rows, count)


def read_in_chunks(decoder, cache, chunk, counts):
    """Hidden states [B,T,D] of every text, `counts(left)` tokens of each sequence at a time."""
    graph, state = nnx.split(decoder)
    hidden = np.zeros((*TOKENS.shape, decoder.config.width), np.float32)
    done = np.zeros(4, int)
    while (done < LENGTHS).any():
        count = np.minimum(counts(LENGTHS - done), chunk)
        tokens = np.full((4, chunk), 31, np.int32)  # behind each sequence's count: rubbish
        for b, n in enumerate(count):
            tokens[b, :n] = TOKENS[b, done[b] : done[b] + n]
        new, cache = read(graph, state, tokens, cache, jnp.asarray(count, jnp.int32))
        for b, n in enumerate(count):
            hidden[b, done[b] : done[b] + n] = new[b, :n]
        done += count
        np.testing.assert_array_equal(cache.lengths, done)
    return hidden


def assert_equal_where_read(hidden, expected, atol=1e-5):
    read_positions = np.arange(TOKENS.shape[1]) < LENGTHS[:, None]
    np.testing.assert_allclose(hidden[read_positions], np.asarray(expected)[read_positions], rtol=0, atol=atol)


@pytest.mark.parametrize(("chunk", "kv_heads"), [(1, 2), (7, 2), (64, 2), (64, 1), (64, 4)])
def test_cached_equals_uncached(chunk, kv_heads):
    decoder = tiny_decoder(kv_heads=kv_heads).unstacked()
    cache = KVCache.empty(decoder.config, 4, 97 + chunk, jnp.float32)
    hidden = read_in_chunks(decoder, cache, chunk, counts=lambda left: left)
    assert_equal_where_read(hidden, run(decoder, TOKENS)[0])


def test_sequences_may_read_different_counts_or_none():
    decoder, rng = tiny_decoder().unstacked(), np.random.default_rng(1)
    cache = KVCache.empty(decoder.config, 4, 97 + 7, jnp.float32)
    hidden = read_in_chunks(decoder, cache, 7, counts=lambda left: np.minimum(left, rng.integers(0, 8, 4)))
    assert_equal_where_read(hidden, run(decoder, TOKENS)[0])


def test_rows_beyond_the_length_are_never_read():
    decoder = tiny_decoder().unstacked()
    clean = KVCache.empty(decoder.config, 4, 97 + 7, jnp.float32)
    soiled = dataclasses.replace(clean, **{f: tuple(x + 1e30 for x in getattr(clean, f)) for f in ("keys", "values")})
    runs = [read_in_chunks(decoder, cache, 7, counts=lambda left: left) for cache in (clean, soiled)]
    np.testing.assert_array_equal(*runs)


def test_a_cache_of_fewer_bits_than_the_weights_works():
    decoder = tiny_decoder().unstacked()
    cache = KVCache.empty(decoder.config, 4, 97 + 64, jnp.bfloat16)
    assert cache.keys[0].dtype == jnp.bfloat16
    hidden = read_in_chunks(decoder, cache, 64, counts=lambda left: left)
    assert_equal_where_read(hidden, run(decoder, TOKENS)[0], atol=0.05)


def test_write_puts_rows_behind_each_length():
    config = tiny_config()
    cache = dataclasses.replace(KVCache.empty(config, 3, 9, jnp.float32), lengths=jnp.array([0, 2, 5], jnp.int32))
    rows = jax.tree.map(jnp.ones_like, no_rows(config, 3, 4, jnp.float32))
    written = cache.write(rows, jnp.array([4, 0, 3], jnp.int32))
    np.testing.assert_array_equal(written.lengths, [4, 2, 8])
    for buffer in (*written.keys, *written.values):
        np.testing.assert_array_equal(
            buffer[:, 0, :, 0], [[1, 1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 1]]
        )


def test_stacked_layers_refuse_a_cache():
    decoder = tiny_decoder()
    with pytest.raises(ValueError, match="unstacked"):
        decoder(TOKENS, KVCache.empty(decoder.config, 4, 100, jnp.float32))
