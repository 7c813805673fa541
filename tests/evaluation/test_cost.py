"""Costs compared with values by hand, and weights with those of decoders."""

import math

import jax
import pytest
from flax import nnx

from colm_jax.checkpoints.huggingface import load_model
from colm_jax.evaluation.cost import Work, alone, bytes_per_weight, read, together, weights_met
from colm_jax.models.config import Mixture
from tests.checkpoints.quantized.checkpoints import quantized
from tests.models.mixed import KINDS
from tests.tiny import tiny_config, tiny_decoder

# One layer, one head of 2: by hand, q, k, v, o 4 · 2·2, feed-forward 3 · 2·3, head 2·5: 44 weights.
SMALL = tiny_config(vocab_size=5, width=2, depth=1, heads=1, kv_heads=1, head_dim=2, ff=3)
SHARED = Mixture(4, 2, ff=10, normalised=False, shared_ff=20, shared_gate=True)


def test_weights_equal_the_decoders_without_norms_and_embedding():
    assert weights_met(SMALL) == 44
    for fields in ({}, {"kv_heads": 4, "head_dim": 16}, {"mixture": Mixture(4, 2)}, {"mixture": SHARED}):
        decoder = tiny_decoder(**fields)
        config = decoder.config
        total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder)))
        norms = (2 * config.depth + 1) * config.width
        assert weights_met(config, active=False) == total - norms - config.width * config.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_weights_equal_the_kernels_of_decoders_with_layers_that_differ(kind):
    decoder = nnx.eval_shape(lambda: tiny_decoder(**KINDS[kind]))
    kernels = {
        ".".join(map(str, path)): math.prod(variable.shape)
        for path, variable in nnx.to_flat_state(nnx.state(decoder))
        if path[-1] in ("kernel", "head", "gate", "up", "down")
    }
    assert weights_met(decoder.config, active=False) == sum(kernels.values())
    mixture, layers = decoder.config.mixture, decoder.config.mixtures.count(True)
    idle = (mixture.networks - mixture.active) * 3 * decoder.config.width * (mixture.ff or decoder.config.ff)
    assert weights_met(decoder.config) == sum(kernels.values()) - layers * idle


def test_latent_attention_counts_its_keys_and_values():
    config = tiny_config(**KINDS["latent attention, two runs"])
    attention = read(config, 0, 3, 4).flops - 2 * weights_met(config) * 3
    assert attention == config.depth * 2 * config.heads * (10 + 5) * (1 + 2 + 3)


def test_mixture_of_experts_counts_the_active_networks():
    plain, mixed = tiny_config(), tiny_config(mixture=Mixture(4, 2))
    router, network = mixed.depth * mixed.width * 4, mixed.depth * 3 * mixed.width * mixed.ff
    assert weights_met(mixed) == weights_met(plain) + network + router
    assert weights_met(mixed, active=False) == weights_met(plain) + 3 * network + router


def test_mixture_counts_networks_of_their_own_size_and_the_shared_one():
    config = tiny_config(mixture=SHARED)
    per_token = 3 * (2 * 10 + 20) + 4 + 1  # columns of width: two networks, the shared one, the router, its gate
    attention = weights_met(tiny_config()) - 3 * config.depth * config.width * config.ff
    assert weights_met(config) == attention + config.depth * config.width * per_token


def test_pass_reads_weights_once_and_attends_to_earlier_tokens():
    assert read(SMALL, 0, 3, 4) == Work(3 * 88 + 4 * 2 * (1 + 2 + 3), 176, 1)
    assert read(SMALL, 2, 4, 0.5) == Work(2 * 88 + 8 * (3 + 4), 22, 1)
    assert read(SMALL, 3, 3, 4) == Work()


def test_sliding_window_limits_attention():
    layers = tiny_config(vocab_size=5, width=2, depth=2, heads=1, kv_heads=1, head_dim=2, ff=3, windows=(2, None))
    attention = read(layers, 0, 4, 4).flops - 2 * weights_met(layers) * 4
    assert attention == 8 * ((1 + 2 + 2 + 2) + (1 + 2 + 3 + 4))


def test_single_model_reads_all_but_the_last_token():
    work = alone(SMALL, 3, 2, 4)
    assert work == read(SMALL, 0, 3, 4) + read(SMALL, 3, 4, 4)
    assert work.passes == 2


def test_expert_call_reads_all_unread_tokens():
    large = tiny_config()
    work = together([SMALL, large], 3, [0, 1, 1, 0], [4, 2])
    expert = read(large, 0, 4, 2) + read(large, 4, 5, 2)
    assert work == alone(SMALL, 3, 4, 4) + expert
    assert together([SMALL, large], 3, [0, 0], [4, 2]) == alone(SMALL, 3, 2, 4)
    assert expert.passes == 2


def test_two_experts_have_separate_caches():
    work = together([SMALL, SMALL, SMALL], 2, [1, 2, 1], [4, 4, 4])
    calls = [read(SMALL, 0, 2, 4), read(SMALL, 0, 3, 4), read(SMALL, 2, 4, 4)]
    assert work.flops == pytest.approx(sum(calls, alone(SMALL, 2, 3, 4)).flops)
    assert work.passes == 3 + 3


def test_bytes_of_a_weight_are_those_that_the_model_holds(tmp_path, mesh):
    assert bytes_per_weight(tiny_decoder("bfloat16")) == 2
    assert bytes_per_weight(tiny_decoder(tied=True)) == 4
    packed, _ = quantized("gptq", tmp_path)
    held, _ = load_model(packed, "bfloat16", mesh, packed=True)
    head, every = held.head[...].size, weights_met(held.config)
    each = 0.5 + (2 + 1) / 24  # a code; for each group of 24 a scale in float16 and a zero point
    assert bytes_per_weight(held) == pytest.approx(((every - head) * each + head * 2) / every)
