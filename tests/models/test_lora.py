"""LoRA starts as nothing, trains only its own matrices, and merged into the kernels computes the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from colm_jax.errors import UserError
from colm_jax.models.config import Mixture
from colm_jax.models.lora import add_lora, merge_lora
from colm_jax.settings.training import Lora
from tests.models.mixed import KINDS, mixed_decoder
from tests.tiny import run, tiny_decoder

TOKENS = np.random.default_rng(0).integers(3, 32, (2, 40))
SETTINGS = Lora(rank=4, alpha=6.0)


def trained(decoder, settings=SETTINGS):
    """The decoder with LoRA matrices that are not at their start."""
    graph, lora, rest = nnx.split(add_lora(decoder, settings, seed=0), nnx.LoRAParam, ...)
    return nnx.merge(
        graph, jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), lora), rest
    )


def test_it_starts_as_nothing():
    decoder = tiny_decoder()
    np.testing.assert_array_equal(run(add_lora(decoder, SETTINGS, 0), TOKENS)[1], run(decoder, TOKENS)[1])


MADE = {
    "plain": tiny_decoder,
    "mixture": partial(tiny_decoder, mixture=Mixture(4, 2)),
    "biases and norms": partial(tiny_decoder, qkv_bias=True, qk_norm="head"),
    **{kind: partial(mixed_decoder, kind) for kind in KINDS},
}


@pytest.mark.parametrize("kind", MADE)
def test_merged_equals_unmerged(kind):
    decoder = MADE[kind]()
    with_lora = trained(decoder)
    expected = run(with_lora, TOKENS)[1]
    assert np.abs(expected - run(decoder, TOKENS)[1]).max() > 0.1
    merged = merge_lora(with_lora, decoder, SETTINGS)
    np.testing.assert_allclose(run(merged, TOKENS)[1], expected, rtol=0, atol=1e-5)
    assert jax.tree.structure(nnx.state(merged)) == jax.tree.structure(nnx.state(decoder))


def test_every_linear_map_gets_matrices_and_modules_choose_them():
    def kernels(settings):
        lora = nnx.state(add_lora(tiny_decoder(), settings, 0), nnx.LoRAParam)
        return {".".join(path).rsplit("_lora_", 1)[0] for path, _ in nnx.to_flat_state(lora)}

    parts = [f"attention.{name}" for name in ("query", "key", "value", "out")]
    parts += [f"feed_forward.{name}" for name in ("gate", "up", "down")]
    assert kernels(SETTINGS) == {f"layers.{part}.kernel" for part in parts}
    assert kernels(Lora(modules="attention/(query|value)")) == {f"layers.{parts[i]}.kernel" for i in (0, 2)}


def test_every_linear_map_of_every_run_gets_matrices():
    decoder = mixed_decoder("latent attention, two runs")
    lora = nnx.state(add_lora(decoder, SETTINGS, 0), nnx.LoRAParam)
    found = {".".join(map(str, path)).rsplit("_lora_", 1)[0] for path, _ in nnx.to_flat_state(lora)}
    latent = ("query_down", "query_up", "key_value_down", "key_value_up", "out")
    expected = set()
    for number, feed_forward in enumerate(("", "shared.")):
        expected |= {f"layers.{number}.attention.{name}.kernel" for name in latent}
        expected |= {f"layers.{number}.feed_forward.{feed_forward}{name}.kernel" for name in ("gate", "up", "down")}
    assert found == expected


def test_layers_start_apart_and_equal_seeds_start_alike():
    def of(seed):
        state = dict(nnx.to_flat_state(nnx.state(add_lora(tiny_decoder(), SETTINGS, seed), nnx.LoRAParam)))
        return np.asarray(state["layers", "attention", "query", "kernel_lora_a"][...])

    assert not np.array_equal(of(0)[0], of(0)[1])
    np.testing.assert_array_equal(of(3), of(3))
    assert not np.array_equal(of(3), of(4))


def test_beside_a_bfloat16_base_the_matrices_are_float32():
    decoder = tiny_decoder("bfloat16")
    with_lora = add_lora(decoder, SETTINGS, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(with_lora, nnx.LoRAParam))} == {jnp.dtype(jnp.float32)}
    with jax.numpy_dtype_promotion("standard"):  # qwix multiplies bfloat16 and float32
        assert run(with_lora, TOKENS)[0].dtype == jnp.bfloat16
    assert merge_lora(with_lora, decoder, SETTINGS).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"rank": 0}, "rank"), ({"alpha": 0.0}, "alpha"), ({"modules": "("}, "no regular expression")],
)
def test_settings_of_no_meaning_are_refused(settings, reason):
    with pytest.raises(UserError, match=reason):
        Lora(**settings)


def test_modules_that_match_nothing_are_refused():
    with pytest.raises(UserError, match="matches no linear map"):
        add_lora(tiny_decoder(), Lora(modules="attn"), 0)
