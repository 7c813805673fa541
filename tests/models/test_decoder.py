"""The decoder's fast paths against the plain pass, and every configuration field against its effect."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.checkpoints.families import from_huggingface, to_huggingface
from colm_jax.models.rope_config import Rope
from tests.models.mixed import KINDS, mixed_decoder
from tests.tiny import forward, run, tiny_config, tiny_decoder

LENGTHS = (97, 5, 64, 33)


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, 32, shape).astype(np.int32)


STACKED = {
    "tied": partial(tiny_decoder, tied=True),
    "untied": partial(tiny_decoder, tied=False),
    **{kind: partial(mixed_decoder, kind) for kind in KINDS},
}


@pytest.mark.parametrize("kind", STACKED)
def test_stacked_equals_unstacked(kind):
    decoder, tokens = STACKED[kind](), random_tokens(2, 40)
    for one, other in zip(run(decoder, tokens), run(decoder.unstacked(), tokens)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_unstacking_twice_changes_nothing():
    decoder = tiny_decoder().unstacked()
    assert decoder.unstacked() is decoder


def test_later_tokens_change_nothing_before_them():
    decoder, tokens = tiny_decoder().unstacked(), random_tokens(len(LENGTHS), 97)
    padding = np.arange(97) >= np.array(LENGTHS)[:, None]
    hidden, _ = run(decoder, tokens)
    padded, _ = run(decoder, np.where(padding, 0, tokens))
    np.testing.assert_array_equal(np.asarray(hidden)[~padding], np.asarray(padded)[~padding])
    assert not np.allclose(np.asarray(hidden)[padding], np.asarray(padded)[padding])


def test_batch_mates_change_nothing():
    decoder, tokens = tiny_decoder(), random_tokens(3, 40)
    together, _ = run(decoder, tokens)
    alone, _ = run(decoder, tokens[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"windows": (8, None), "window_rope": Rope(500.0)}], ids=["full", "windows"])
@pytest.mark.parametrize("stacked", [True, False])
def test_texts_that_share_a_row_do_not_see_each_other(fields, stacked):
    decoder, lengths = tiny_decoder(**fields), (17, 1, 30)
    decoder = decoder if stacked else decoder.unstacked()
    tokens = random_tokens(1, sum(lengths))
    segments = np.repeat([1, 2, 3], lengths)[None]
    hidden, _ = decoder(tokens, segments=segments)
    alone = [decoder(part)[0] for part in np.split(tokens, np.cumsum(lengths)[:-1], axis=1)]
    np.testing.assert_allclose(hidden, np.concatenate(alone, axis=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_share_a_row_have_places_of_their_own(kind):
    decoder, lengths = mixed_decoder(kind), (19, 5, 19)  # of chunks of 8 each has its own
    graph, state = nnx.split(decoder)
    tokens, segments = random_tokens(1, sum(lengths)), np.repeat([1, 2, 3], lengths)[None]
    packed = jax.jit(lambda state: nnx.merge(graph, state)(tokens, segments=segments)[0])(state)
    alone = [run(decoder, part)[0] for part in np.split(tokens, np.cumsum(lengths)[:-1], axis=1)]
    np.testing.assert_allclose(packed, np.concatenate(alone, axis=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "remat"), list(zip(KINDS, ["dots", "full", "dots"])))
def test_gradients_do_not_depend_on_what_is_kept_for_them(kind, remat):
    graph, state = nnx.split(mixed_decoder(kind))
    tokens = random_tokens(2, 20)

    @jax.jit(static_argnames="remat")
    def gradients(state, remat):
        def loss(state):
            decoder = nnx.merge(graph, state)
            return jnp.mean(jax.nn.logsumexp(decoder.logits(decoder(tokens, remat=remat)[0]), axis=-1))

        return jax.grad(loss)(state)

    kept, again = gradients(state, "none"), gradients(state, remat)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), kept, again)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logits_are_float32_and_hidden_states_of_the_weights_type(dtype):
    decoder = tiny_decoder(dtype)
    hidden, logits = run(decoder, random_tokens(1, 8))
    assert (hidden.dtype, decoder.dtype, logits.dtype) == (jnp.dtype(dtype), jnp.dtype(dtype), jnp.float32)
    exact, _ = run(tiny_decoder(), random_tokens(1, 8))
    np.testing.assert_allclose(hidden.astype(jnp.float32), exact, rtol=0, atol=0.1)


def test_program_size_does_not_grow_with_depth():
    def lowered(depth):
        graph, state = nnx.split(nnx.eval_shape(lambda: tiny_decoder(depth=depth)))
        return len(forward.lower(graph, state, jax.ShapeDtypeStruct((2, 16), jnp.int32)).as_text())

    assert lowered(2) == lowered(6)


def test_config_survives_its_file(tmp_path):
    config = tiny_config(rope=Rope(123.5), rms_eps=3e-4, tied=True)
    stored = json.loads(json.dumps(to_huggingface(config, "bfloat16", bos_id=1, eos_id=None)))
    assert from_huggingface(stored, "config.json") == config
