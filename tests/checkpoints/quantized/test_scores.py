"""A quantised checkpoint that stays so gives the log-probabilities of the weights that its codes stand for."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from colm_jax.checkpoints.huggingface import load_model, to_tensors
from colm_jax.checkpoints.layout import by_path
from colm_jax.models.quantized import PackedKernel
from colm_jax.parallel import make_mesh
from tests.checkpoints.quantized.checkpoints import FORMATS, LINEAR, gpt_oss, quantized
from tests.models.families import cached_error, tokens
from tests.tiny import run

NATS = 1e-3


def kept(decoder):
    """Paths of the kernels in few bits."""
    return {
        path for path, variable in by_path(nnx.state(decoder)).items() if isinstance(variable.get_value(), PackedKernel)
    }


def log_probs(decoder, length=200):
    return np.asarray(jax.nn.log_softmax(run(decoder, tokens()[None, :length])[1].astype(np.float32)))


def worst(packed, plain):
    return float(np.abs(log_probs(packed) - log_probs(plain)).max())


@pytest.mark.parametrize("name", FORMATS)
def test_scores_are_those_of_the_dequantised_weights(name, tmp_path, mesh):
    packed, plain = quantized(name, tmp_path)
    exact = load_model(plain, "float32", mesh)[0]
    decoder = load_model(packed, "float32", mesh, packed=True)[0]
    assert len(kept(decoder)) == (6 if name == "deepseek" else 7)  # blocks of 32 inputs and heads of 12
    assert worst(decoder, exact) < NATS
    dequantised = load_model(packed, "float32", mesh)[0]
    assert not kept(dequantised)
    for one, other in zip(jax.tree.leaves(nnx.state(dequantised)), jax.tree.leaves(nnx.state(exact)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    stored = to_tensors(exact)
    for key, value in to_tensors(decoder).items():
        np.testing.assert_allclose(value, stored[key], rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("name", ["awq", "gptq act-order", "fp8 channel", "pack-quantized with zeros"])
def test_scores_in_bfloat16_are_those_of_the_dequantised_weights(name, tmp_path, mesh):
    """The mean of a text's tokens, as `colm score` reports it; roundings of single activations differ."""
    packed, plain = quantized(name, tmp_path)
    decoders = load_model(packed, "bfloat16", mesh, packed=True)[0], load_model(plain, "bfloat16", mesh)[0]
    assert kept(decoders[0])
    text = tokens()[1:201]
    means = [np.take_along_axis(log_probs(d)[0], text[:, None], -1).mean() for d in decoders]
    assert abs(means[0] - means[1]) < NATS


@pytest.mark.parametrize("name", ["awq", "gptq act-order", "fp8 block"])
def test_the_cache_and_layers_in_a_list_give_the_same(name, tmp_path):
    packed, _ = quantized(name, tmp_path)
    assert cached_error(packed, packed=True) < 1e-4


@pytest.mark.parametrize("name", ["awq", "gptq act-order", "fp8 block", "awq part of a head", "fp8 tensor"])
def test_eight_devices_give_the_same(name, tmp_path, mesh):
    packed, _ = quantized(name, tmp_path)
    found = load_model(packed, "float32", make_mesh(2, 2, 2), packed=True)[0]
    assert len(kept(found)) == 7
    gate = found.layers.feed_forward.gate.kernel.get_value()
    assert not gate.codes.is_fully_replicated
    assert worst(found, load_model(packed, "float32", mesh, packed=True)[0]) < 1e-4


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("name", ["awq", "gptq act-order", "fp8 block"])
def test_networks_of_a_mixture_stay_quantised(name, shape, tmp_path, mesh):
    packed, plain = quantized(name, tmp_path, "mixtral")
    decoder = load_model(packed, "float32", make_mesh(*shape), packed=True)[0]
    own = kept(decoder)
    # An order of a network's inputs cannot span devices; 36 pairs of codes are not split by 8.
    assert ("layers.feed_forward.gate" in own) == (name != "gptq act-order")
    assert ("layers.feed_forward.down" in own) == (name == "fp8 block" or (name, shape[2]) in {("awq", 1), ("awq", 2)})
    assert "layers.attention.out.kernel" in own
    assert worst(decoder, load_model(plain, "float32", mesh)[0]) < NATS


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_gpt_oss_stays_in_mxfp4(shape, tmp_path, mesh):
    packed, plain = gpt_oss(tmp_path)
    decoder = load_model(packed, "float32", make_mesh(*shape), packed=True)[0]
    assert len(kept(decoder)) % 3 == 0 and all("feed_forward" in path for path in kept(decoder)) and kept(decoder)
    exact = load_model(plain, "float32", mesh)[0]
    assert worst(decoder, exact) < NATS
    for one, other in zip(
        jax.tree.leaves(nnx.state(load_model(packed, "float32", mesh)[0])),
        jax.tree.leaves(nnx.state(exact)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["awq", "gptq act-order", "fp8 tensor"])
def test_parameters_that_share_a_stored_tensor(name, tmp_path, mesh):
    """Phi-3's query, key and value, and its gate and up."""
    packed, plain = quantized(name, tmp_path, "phi3")
    decoder = load_model(packed, "float32", mesh, packed=True)[0]
    assert len(kept(decoder)) == 7
    assert worst(decoder, load_model(plain, "float32", mesh)[0]) < NATS


def test_layers_that_are_not_all_quantised_are_dequantised_together(tmp_path, mesh):
    linear = re.compile(LINEAR.pattern.replace(r"layers\.\d+", r"layers\.[01]"))
    packed, plain = quantized("awq", tmp_path, linear=linear)
    exact = load_model(plain, "float32", mesh)[0]
    decoder = load_model(packed, "float32", mesh, packed=True)[0]
    assert not kept(decoder)
    assert worst(decoder, exact) < NATS
    in_a_list = load_model(packed, "float32", mesh, packed=True, stacked=False)[0]
    assert len(kept(in_a_list)) == 14
    assert worst(in_a_list, exact) < NATS


def test_quantising_again(tmp_path, mesh):
    packed, plain = quantized("awq", tmp_path)
    again = load_model(packed, "float32", mesh, quantize="int8")[0]
    assert worst(again, load_model(plain, "float32", mesh, quantize="int8")[0]) < NATS


_DEEPSEEK = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\..*proj(_with_mqa)?\.weight")


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_deepseek_in_blocks(shape, name, tmp_path, mesh):
    """Latent attention and routed and shared networks; the kernel that queries absorb is dequantised."""
    packed, plain = quantized("deepseek", tmp_path, name, _DEEPSEEK)
    decoder = load_model(packed, "float32", make_mesh(*shape), packed=True)[0]
    paths = kept(decoder)
    assert any(path.endswith("feed_forward.gate") for path in paths)
    assert any(path.endswith("feed_forward.shared.down.kernel") for path in paths)
    assert any(path.endswith("attention.key_value_down.kernel") for path in paths)
    assert not any("key_value_up" in path for path in paths)
    assert worst(decoder, load_model(plain, "float32", mesh)[0]) < NATS
    if shape == (1, 1, 1):
        assert cached_error(packed, packed=True) < 1e-4
