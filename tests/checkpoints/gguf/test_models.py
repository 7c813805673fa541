"""Every architecture and type: a GGUF file loads as the checkpoint that it was converted from."""

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType as Type

from colm_jax.checkpoints.directory import resolve
from colm_jax.checkpoints.gguf.directory import tensors as gguf_tensors
from colm_jax.checkpoints.gguf.header import TYPES, read_header
from colm_jax.checkpoints.gguf.tensors import CODE_GROUP, code_bits, read_codes
from colm_jax.checkpoints.huggingface import load_model, read_config, to_tensors
from colm_jax.errors import UserError
from colm_jax.text.tokenizer import load_tokenizer
from tests.checkpoints.gguf.write import (
    CONFIGS,
    add_sizes,
    write_directory,
    write_gguf,
    write_tiny,
)
from tests.models.families import weights


@pytest.mark.parametrize("name", CONFIGS)
def test_architecture_loads_as_its_checkpoint(name, tmp_path, mesh):
    expected = write_directory(tmp_path / "expected", name)
    directory = resolve(write_tiny(tmp_path / "tiny.gguf", name))
    ours, theirs = read_config(directory), read_config(expected)
    if name == "llama/3":  # the same factors, by other parameters
        assert ours.rope.scaling.original_context == 100
        assert ours.rope.scaling.high == pytest.approx(5 / 1.5)
        ours = replace(ours, rope=theirs.rope)
    assert ours == theirs
    read = to_tensors(load_model(directory, "float32", mesh)[0])
    wanted = to_tensors(load_model(expected, "float32", mesh)[0])
    assert read.keys() == wanted.keys()
    for key, value in wanted.items():
        exact = not (name.startswith("gemma") and key.endswith("norm.weight"))  # 1 was added and subtracted
        np.testing.assert_allclose(read[key], value, rtol=0, atol=0 if exact else 1e-6, err_msg=key)


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("kind", sorted(TYPES, key=lambda kind: kind.name), ids=lambda kind: kind.name)
def test_type_is_dequantised_as_llama_cpp_does(kind, mesh_shape, tmp_path):
    from colm_jax.parallel import make_mesh

    config = {**CONFIGS["llama"], "hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    drawn = {name: value for name, value in weights(config).items() if "norm" in name or "bias" not in name}
    config |= {"attention_bias": False, "mlp_bias": False}
    file = write_gguf(tmp_path / "tiny.gguf", "llama", config, drawn, kind)
    read = to_tensors(load_model(resolve(file), "float32", make_mesh(*mesh_shape))[0])
    name = "model.layers.2.mlp.down_proj.weight"
    reader = gguf.GGUFReader(file)
    stored = next(t for t in reader.tensors if t.name == "blk.2.ffn_down.weight")
    assert stored.tensor_type == kind
    np.testing.assert_array_equal(read[name], quants.dequantize(stored.data, kind))
    stored = next(t for t in reader.tensors if t.name == "blk.2.attn_k.weight")
    values = quants.dequantize(stored.data, kind)  # rotary pairs, which are halves in the checkpoint
    expected = values.reshape(2, 32, 2, 256).swapaxes(1, 2).reshape(values.shape)
    np.testing.assert_array_equal(read["model.layers.2.self_attn.k_proj.weight"], expected)


@pytest.mark.parametrize(("name", "kind"), [("llama/mixtral", Type.Q8_0), ("gpt-oss", Type.MXFP4)])
def test_rows_are_those_of_the_whole(name, kind, tmp_path):
    directory = resolve(write_tiny(tmp_path / "tiny.gguf", name, kind))
    for tensor in gguf_tensors(directory):
        whole = tensor.rows(0, tensor.shape[0])
        assert whole.shape == tensor.shape
        assert whole.dtype == tensor.dtype
        for start, stop in [(0, 1), (1, 4), (tensor.shape[0] - 3, tensor.shape[0])]:
            np.testing.assert_array_equal(tensor.rows(start, stop), whole[start:stop], err_msg=tensor.name)
        if len(tensor.shape) > 2:
            slab = tensor.slab(2)
            for start, stop in [(0, slab.shape[0]), (31, 33), (5, 40)]:
                np.testing.assert_array_equal(slab.rows(start, stop), whole[2, start:stop], err_msg=tensor.name)


@pytest.mark.parametrize(("kind", "bits"), [(Type.Q8_0, 8), (Type.Q4_0, 4)])
@pytest.mark.parametrize("name", ["llama", "llama/mixtral"])
def test_codes_times_scales_are_the_values(name, kind, bits, tmp_path):
    found = 0
    for tensor in gguf_tensors(resolve(write_tiny(tmp_path / "tiny.gguf", name, kind))):
        if code_bits(tensor) is None:
            continue
        read = read_codes(tensor)
        assert read.bits == bits
        assert read.codes.dtype == np.int8
        assert np.abs(read.codes.astype(int)).max() <= 2 ** (bits - 1)
        values = read.codes.astype(np.float32) * np.repeat(read.scales.astype(np.float32), CODE_GROUP, axis=1)
        np.testing.assert_array_equal(values, tensor.rows(0, tensor.shape[0]), err_msg=tensor.name)
        found += 1
    assert found > 20


def test_networks_of_gpt_oss_are_turned_over(tmp_path):
    file = write_tiny(tmp_path / "tiny.gguf", "gpt-oss", Type.MXFP4)
    stored = {t.name: quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}
    read = {tensor.name: tensor.rows(0, tensor.shape[0]) for tensor in gguf_tensors(resolve(file))}
    experts = "model.layers.1.mlp.experts."
    both = read[experts + "gate_up_proj"]
    np.testing.assert_array_equal(both[:, :, 0::2], stored["blk.1.ffn_gate_exps.weight"].swapaxes(1, 2))
    np.testing.assert_array_equal(both[:, :, 1::2], stored["blk.1.ffn_up_exps.weight"].swapaxes(1, 2))
    np.testing.assert_array_equal(read[experts + "down_proj"], stored["blk.1.ffn_down_exps.weight"].swapaxes(1, 2))
    np.testing.assert_array_equal(read[experts + "gate_up_proj_bias"][:, 1::2], stored["blk.1.ffn_up_exps.bias"])


_QWEN_MIXTURE = {
    **{key: value for key, value in CONFIGS["qwen3"].items() if key != "model_type"},
    "tie_word_embeddings": False,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def _qwen_mixture(name):
    """Random tensors of the first layer of a mixture of Qwen's, with its embedding and head."""
    rng, layer = np.random.default_rng(1), "model.layers.0."
    shapes = {"model.embed_tokens.weight": (64, 64), "lm_head.weight": (64, 64), "model.norm.weight": (64,)}
    shapes[layer + "mlp.gate.weight"] = (6, 64)
    for i in range(6):
        for part, shape in (("gate", (32, 64)), ("up", (32, 64)), ("down", (64, 32))):
            shapes[f"{layer}mlp.experts.{i}.{part}_proj.weight"] = shape
    if name == "qwen2moe":
        shapes[layer + "mlp.shared_expert_gate.weight"] = (1, 64)
        for part, shape in (("gate", (48, 64)), ("up", (48, 64)), ("down", (64, 48))):
            shapes[f"{layer}mlp.shared_expert.{part}_proj.weight"] = shape
    else:
        shapes |= {f"{layer}self_attn.{part}_norm.weight": (32,) for part in "qk"}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ["qwen2moe", "qwen3moe"])
def test_mixtures_of_qwen_have_the_tensors_and_fields_of_their_checkpoints(name, tmp_path):
    shared = {"shared_expert_intermediate_size": 48} if name == "qwen2moe" else {}
    config, expected = {**_QWEN_MIXTURE, "model_type": name, **shared}, _qwen_mixture(name)
    if shared:
        config["head_dim"] = 16
    directory = resolve(write_gguf(tmp_path / "tiny.gguf", name, config, expected))
    read = {tensor.name: tensor.rows(0, tensor.shape[0]) for tensor in gguf_tensors(directory)}
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(read[key], value, err_msg=key)
    written = json.loads((directory / "config.json").read_text())
    wanted = {**config, "model_type": {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}[name]}
    wanted["norm_topk_prob"] = name == "qwen3moe"
    if shared:
        del wanted["head_dim"]
    assert {key: written.get(key) for key in wanted} == wanted
    assert "head_dim" not in written or not shared


def test_split_file_loads_as_one(tmp_path, mesh):
    whole = write_tiny(tmp_path / "whole.gguf")
    reader = gguf.GGUFReader(whole)
    splits = [reader.tensors[::2], reader.tensors[1::2]]
    parts = [tmp_path / f"tiny-{i}-of-00002.gguf" for i in ("00001", "00002")]
    for number, (part, tensors) in enumerate(zip(parts, splits)):
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            from tests.checkpoints.gguf import write

            write._add_keys(writer, CONFIGS["llama"])
            write.add_tokenizer(writer, 64)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    expected, read = (to_tensors(load_model(resolve(file), "float32", mesh)[0]) for file in (whole, parts[0]))
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value)
    with pytest.raises(UserError, match=r"part 2 of 2; name the first one, tiny-00001-of-00002\.gguf"):
        resolve(parts[1])
    parts[1].unlink()
    with pytest.raises(UserError, match=r"tiny-00002-of-00002\.gguf: is missing; .* 2 parts"):
        resolve(parts[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("clamp_kqv", 4.0, r"llama\.attention\.clamp_kqv \(4\.0\) is not supported"),
        ("attention.causal", False, r"llama\.attention\.causal is False, and only True is supported"),
        ("rope.dimension_count", 16, r"llama\.rope\.dimension_count differs from the head's size, 32"),
        ("rope.scaling.type", "wavy", r"llama\.rope\.scaling\.type is 'wavy'"),
        ("rope.scaling.type", "yarn", r"'yarn', which needs factor and original_context_length"),
        ("attention.value_length", 8, r"llama\.attention\.value_length differs from the length of keys, 32"),
        ("embedding_length", "64", r"llama\.embedding_length is no whole number: '64'"),
        ("expert_count", 5000, r"llama\.expert_count is 5000; at most 1024"),
        ("attention.layer_norm_rms_epsilon", float("nan"), r"layer_norm_rms_epsilon is no number: nan"),
    ],
)
def test_key_that_is_not_supported_is_an_error_that_names_it(key, value, message, tmp_path):
    key = f"attention.{key}" if key == "clamp_kqv" else key

    def add_keys(writer, config):
        add_sizes(writer, config)
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        writer.kv_data[0].pop(f"llama.{key}", None)
        add[type(value)](f"llama.{key}", value)

    file = write_tiny(tmp_path / "tiny.gguf", add_keys=add_keys)
    with pytest.raises(UserError, match=message) as caught:
        resolve(file)
    assert str(caught.value).startswith(str(file))


def test_missing_key_is_an_error_that_names_it(tmp_path):
    def add_keys(writer, config):
        add_sizes(writer, config)
        writer.kv_data[0].pop("llama.context_length")

    with pytest.raises(UserError, match=r"tiny\.gguf: llama\.context_length is missing"):
        resolve(write_tiny(tmp_path / "tiny.gguf", add_keys=add_keys))


def test_unsupported_architecture_is_an_error_that_lists_the_supported(tmp_path):
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"tiny\.gguf: architecture 'mamba' is not supported, only llama, qwen2"):
        resolve(file)


def test_unknown_and_missing_tensors_are_errors(tmp_path, mesh):
    config = CONFIGS["llama"]
    drawn = weights(config)
    extra = {"blk.1.attn_q_norm.weight": np.zeros(64, np.float32)}
    with pytest.raises(UserError, match=r"tiny\.gguf: tensor 'blk\.1\.attn_q_norm\.weight' is not supported"):
        resolve(write_gguf(tmp_path / "tiny.gguf", "llama", config, drawn, extra=extra))
    del drawn["model.layers.1.mlp.up_proj.weight"]
    directory = resolve(write_gguf(tmp_path / "other.gguf", "llama", config, drawn))
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/other\.gguf: tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is"
    ):
        load_model(directory, "float32", mesh)


def test_values_that_are_not_finite_are_an_error_that_names_the_tensor(tmp_path, mesh):
    file = write_tiny(tmp_path / "tiny.gguf", "llama", Type.Q8_0)
    tensor = read_header(file).tensors["blk.3.ffn_up.weight"]
    data = bytearray(file.read_bytes())
    data[tensor.offset + 34 : tensor.offset + 36] = np.float16(np.nan).tobytes()
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"tiny\.gguf: tensor 'blk\.3\.ffn_up\.weight' holds NaN or infinite values"):
        load_model(resolve(file), "float32", mesh)


def test_type_that_is_not_supported_is_an_error_that_names_it(tmp_path):
    config = {**CONFIGS["llama"], "hidden_size": 256, "intermediate_size": 256}
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((64, 66), np.uint8), raw_dtype=Type.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert config
    with pytest.raises(UserError, match=r"tensor 'token_embd\.weight' has type IQ2_XXS; only BF16, F16"):
        resolve(file)


def test_unused_tokens_are_never_written(tmp_path):
    tokenizer = load_tokenizer(resolve(write_tiny(tmp_path / "tiny.gguf")))
    assert tokenizer.size == 40
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.encode("ab c") == [1, 13, 14, 15, 13, 16]
    assert tokenizer.decode(tokenizer.encode("ab c")) == "ab c"
    assert tokenizer.encode("ab\t") == [1, 13, 14, 15, 12]  # a byte
    assert tokenizer.encode("a</s>b") == [1, 13, 14, 2, 13, 15]
