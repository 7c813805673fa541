"""Loading is exact and strict; each problem of a directory is an error that names it."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from colm_jax.checkpoints.describe import describe
from colm_jax.checkpoints.directory import resolve, weight_files
from colm_jax.checkpoints.huggingface import load_model, read_config, save_tensors, to_tensors
from colm_jax.errors import UserError
from colm_jax.models.rope_config import Rope
from colm_jax.parallel.mesh import MESH_AXES
from colm_jax.storage import read_json
from tests.models.make_golden import SHARED_MODELS
from tests.tiny import edit_json, run

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
KEY = "model.layers.1.self_attn.k_proj.weight"


def assert_same(tensors, stored):
    assert set(tensors) == set(stored)
    for name, value in stored.items():
        assert tensors[name].dtype == value.dtype
        assert tensors[name].tobytes() == value.tobytes(), name


def edit_weights(directory, change):
    """Rewrite model.safetensors; `change` edits the dictionary in place."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def shard(directory, parts, weight_map):
    """Replace model.safetensors by the named files with the listed tensors, and an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def halves(directory):
    names = sorted(load_file(directory / "model.safetensors"))
    return {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}


def map_of(parts):
    return {name: file for file, names in parts.items() for name in names}


def error_of(directory, mesh, dtype="float32", **settings):
    """Return the one-line error of loading."""
    with pytest.raises(UserError) as caught:
        load_model(directory, dtype, mesh, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Valid checkpoints.


@pytest.mark.parametrize("name", [name for name in SHARED_MODELS if not name.endswith("-colm")])
def test_real_models_round_trip_bit_for_bit(name, shared, mesh, tmp_path):
    directory = shared / "models" / name
    decoder, deferral = load_model(directory, "float32", mesh)
    stored = load_file(directory / "model.safetensors")
    assert deferral is None
    assert_same(to_tensors(decoder), stored)
    save_tensors(to_tensors(decoder), tmp_path / "model.safetensors")
    assert_same(load_file(tmp_path / "model.safetensors"), stored)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_round_trips_bit_for_bit(dtype, tied, tiny_model, mesh):
    directory = tiny_model(dtype=dtype, tied=tied, head_dim=6)
    stored = load_file(directory / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {np.dtype(DTYPES[dtype])}
    decoder, _ = load_model(directory, dtype, mesh)
    assert decoder.dtype == jnp.dtype(dtype)
    assert_same(to_tensors(decoder), stored)


def test_weights_are_converted_on_loading_and_on_saving(tiny_model, mesh):
    directory = tiny_model()
    stored = load_file(directory / "model.safetensors")
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in stored.items()}
    assert_same(to_tensors(load_model(directory, "bfloat16", mesh)[0]), half)
    assert_same(to_tensors(load_model(directory, "float32", mesh)[0], "bfloat16"), half)


def test_sharded_checkpoint_equals_single_file(tiny_model, mesh):
    directory = tiny_model()
    stored = load_file(directory / "model.safetensors")
    parts = halves(directory)
    shard(directory, parts, map_of(parts))
    assert [path.name for path in weight_files(directory)] == list(parts)
    assert_same(to_tensors(load_model(directory, "float32", mesh)[0]), stored)


def test_original_format_is_split_into_base_and_gate(shared, mesh):
    directory = shared / "models" / "babyllama-105-colm"
    stored = load_file(directory / "model.safetensors")
    decoder, deferral = load_model(directory, "float32", mesh, tokenizer_size=105)
    np.testing.assert_array_equal(deferral.gate, stored["lm_head.weight"][-1])
    np.testing.assert_array_equal(deferral.embedding, stored["model.embed_tokens.weight"][-1])
    assert deferral.gate.dtype == np.float32
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        stored[name] = stored[name][:-1]
    assert_same(to_tensors(decoder), stored)
    assert decoder.config.vocab_size == read_config(directory).vocab_size - 1 == 105


def test_deferral_row_stays_float32_with_a_bfloat16_base(shared, mesh):
    directory = shared / "models" / "babyllama-105-colm"
    _, deferral = load_model(directory, "bfloat16", mesh, tokenizer_size=105)
    np.testing.assert_array_equal(deferral.gate, load_file(directory / "model.safetensors")["lm_head.weight"][-1])


def test_every_parameter_is_set_by_the_checkpoint(tiny_model, mesh):
    first, second = (load_model(tiny_model(f"{seed}", seed=seed), "float32", mesh)[0] for seed in (0, 1))
    for (path, one), (_, other) in zip(*(nnx.to_flat_state(nnx.state(d)) for d in (first, second)), strict=True):
        assert "scale" in path or not np.array_equal(one[...], other[...]), path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_head_equal_to_a_tied_table_changes_nothing(dtype, tiny_model, mesh):
    directory, tokens = tiny_model(tied=True), np.array([[1, 5, 9]])
    _, before = run(load_model(directory, "float32", mesh)[0], tokens)
    edit_weights(directory, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].astype(dtype)}))
    np.testing.assert_array_equal(run(load_model(directory, "float32", mesh)[0], tokens)[1], before)


OTHER_HEADS = {
    "its last value": lambda table: np.concatenate([table[:-1], table[-1:] + np.eye(32, dtype=np.float32)[-1:]]),
    "rounded": lambda table: table.astype(np.float16),
    "a row less": lambda table: table[:-1].copy(),
    "transposed": lambda table: np.ascontiguousarray(table.T[:, :16]),
}


@pytest.mark.parametrize("change", OTHER_HEADS)
@pytest.mark.parametrize("flag", [True, None])  # None: omitted; Gemma's default is tied
def test_tied_model_with_a_different_head_is_an_error(change, flag, tiny_model, mesh):
    directory = tiny_model(tied=True)
    edit_weights(directory, lambda w: w.update({"lm_head.weight": OTHER_HEADS[change](w["model.embed_tokens.weight"])}))
    if flag is None:
        family = {"query_pre_attn_scalar": 8, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 16}
        edit_json(directory / "config.json", model_type="gemma2", hidden_act=None, mlp_bias=None, **family)
        edit_json(directory / "config.json", tie_word_embeddings=None)
        norms = [f"model.layers.{i}.{n}_feedforward_layernorm.weight" for i in (0, 1) for n in ("pre", "post")]
        edit_weights(directory, lambda w: w.update({name: np.zeros(32, np.float32) for name in norms}))
    message = error_of(directory, mesh)
    assert "model.safetensors: config.json ties the head to the embedding" in message
    assert "set tie_word_embeddings to false" in message


def test_untied_model_without_a_head_is_an_error(tiny_model, mesh):
    directory = tiny_model(tied=True)
    edit_json(directory / "config.json", tie_word_embeddings=False)
    assert "'lm_head.weight' is missing" in error_of(directory, mesh)


def test_rotary_buffers_of_old_checkpoints_are_ignored(tiny_model, mesh):
    directory = tiny_model()
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    edit_weights(directory, lambda w: w.update(buffer))
    load_model(directory, "float32", mesh)


@pytest.mark.parametrize("field", ["rope_parameters", "rope_theta"])
def test_rope_theta_is_read_in_both_spellings(field, tiny_model):
    directory = tiny_model(rope=Rope(321.0))
    edit_json(directory / "config.json", **{field: None})
    assert read_config(directory).rope == Rope(321.0)


def test_missing_kv_heads_and_head_dim_have_the_references_defaults(tiny_model):
    directory = tiny_model()
    edit_json(directory / "config.json", num_key_value_heads=None, head_dim=None)
    config = read_config(directory)
    assert (config.kv_heads, config.head_dim) == (4, 8)


# Invalid weights.

WRONG_WEIGHTS = {
    "unknown": (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": w["model.norm.weight"]}), "q_proj.bias"),
    "a layer too many": (lambda w: w.update({KEY.replace("1", "2"): w[KEY].copy()}), KEY.replace("1", "2")),
    "missing": (lambda w: w.pop(KEY), KEY),
    "head missing": (lambda w: w.pop("lm_head.weight"), "lm_head.weight"),
    "transposed": (
        lambda w: w.update({KEY: np.ascontiguousarray(w[KEY].T)}),
        r"k_proj.* \[32, 16\], expected \[16, 32",
    ),
    "flattened": (lambda w: w.update({KEY: w[KEY].reshape(-1)}), r"k_proj.* \[512\], expected \[16, 32"),
    "NaN": (lambda w: w[KEY].__setitem__((3, 4), np.nan), f"{KEY}' holds NaN"),
    "infinite": (lambda w: w[KEY].__setitem__((3, 4), -np.inf), f"{KEY}' holds NaN or inf"),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_invalid_weights_are_an_error_that_names_them(wrong, tiny_model, mesh):
    change, named = WRONG_WEIGHTS[wrong]
    directory = tiny_model()
    edit_weights(directory, change)
    assert re.search(named, error_of(directory, mesh))


def test_weights_that_overflow_a_narrower_dtype_are_an_error(tiny_model, mesh):
    directory = tiny_model()
    edit_weights(directory, lambda w: w[KEY].__setitem__((3, 4), 1e6))
    load_model(directory, "bfloat16", mesh)
    assert KEY in error_of(directory, mesh, dtype="float16")


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_truncated_file_is_an_error_that_names_it(kept, tiny_model, mesh):
    file = tiny_model() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file}: not a readable safetensors file" in error_of(file.parent, mesh)


def test_missing_file_is_an_error_that_names_it(tiny_model, mesh):
    directory = tiny_model()
    (directory / "model.safetensors").unlink()
    assert "model.safetensors: weights file is missing" in error_of(directory, mesh)


def test_pickled_weights_are_an_error(tiny_model, mesh):
    directory = tiny_model()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "pickled" in error_of(directory, mesh)


def test_missing_shard_is_an_error_that_names_it(tiny_model, mesh):
    directory = tiny_model()
    parts = halves(directory)
    shard(directory, {"model-1.safetensors": parts["model-1.safetensors"]}, map_of(parts))
    assert "model-2.safetensors: weights file is missing" in error_of(directory, mesh)


def test_tensor_missing_from_its_indexed_file_is_an_error(tiny_model, mesh):
    directory = tiny_model()
    parts = halves(directory)
    shard(directory, parts, {name: "model-1.safetensors" for name in map_of(parts)})
    message = error_of(directory, mesh)
    assert f"model-1.safetensors: tensor '{parts['model-2.safetensors'][0]}', listed in the index" in message


def test_index_may_list_buffers_and_omit_tensors(tiny_model, mesh):
    directory = tiny_model()
    stored, parts = load_file(directory / "model.safetensors"), halves(directory)
    listed = map_of(parts) | {"model.layers.0.self_attn.rotary_emb.inv_freq": "model-2.safetensors"}
    del listed["model.norm.weight"]  # transformers reads every tensor of the listed files
    shard(directory, parts, listed)
    assert_same(to_tensors(load_model(directory, "float32", mesh)[0]), stored)


def test_tensor_in_two_shards_is_an_error_that_names_it(tiny_model, mesh):
    directory = tiny_model()
    parts = halves(directory)
    twice = parts["model-1.safetensors"][0]
    parts["model-2.safetensors"].append(twice)
    shard(directory, parts, map_of(parts))
    message = error_of(directory, mesh)
    assert f"'{twice}' is also in model-1.safetensors" in message
    assert "model-2.safetensors" in message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_invalid_index_is_an_error_that_names_it(content, tiny_model, mesh):
    directory = tiny_model()
    (directory / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json: " in error_of(directory, mesh)


def test_original_format_without_the_deferral_row_is_an_error(shared, mesh):
    message = error_of(shared / "models" / "babyllama-105", mesh, tokenizer_size=105)
    assert "106 rows" in message
    assert "vocab_size=105" in message


# Invalid config.json.

WRONG_CONFIGS = {
    "another family": ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported, only llama, mistral"),
    "a string for a number": ({"hidden_size": "32"}, "'hidden_size' has a wrong type: '32'"),
    "a fraction for a count": ({"num_hidden_layers": 2.0}, "'num_hidden_layers' has a wrong type: 2.0"),
    "a truth for a count": ({"vocab_size": True}, "'vocab_size' has a wrong type: True"),
    "a number for a truth": ({"tie_word_embeddings": 1}, "'tie_word_embeddings' has a wrong type: 1"),
    "a string for kv heads": ({"num_key_value_heads": "2"}, "'num_key_value_heads' has a wrong type: '2'"),
    "missing": ({"rms_norm_eps": None}, "'rms_norm_eps' is missing"),
    "a window in a family without": ({"sliding_window": 512}, "'sliding_window' is set (512)"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    "biases": ({"attention_bias": 1}, "'attention_bias' has a wrong type: 1"),
    "scaled rope": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}},
        "'original_max_position_embeddings' is missing",
    ),
    "scaled rope, old spelling": (
        {"rope_scaling": {"type": "dynamic"}, "rope_parameters": None},
        "rope_scaling: field 'factor' is missing",
    ),
    "unknown rope field": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor'"),
    "rope of no meaning": ({"rope_parameters": "fast"}, "'rope_parameters' has a wrong type: 'fast'"),
    "theta of 0": ({"rope_theta": 0, "rope_parameters": None}, "rope theta must be a positive number, got 0.0"),
    "no heads": ({"num_attention_heads": 0, "head_dim": None}, "heads must be a positive whole number, got 0"),
    "heads that do not group": ({"num_key_value_heads": 3}, "heads (4) must be a multiple of kv_heads (3)"),
    "odd head": ({"head_dim": 7}, "head_dim must be even for RoPE, got 7"),
}


@pytest.mark.parametrize("wrong", WRONG_CONFIGS)
def test_invalid_config_is_an_error_that_names_the_field(wrong, tiny_model, mesh):
    fields, named = WRONG_CONFIGS[wrong]
    directory = tiny_model()
    edit_json(directory / "config.json", **fields)
    message = error_of(directory, mesh)
    assert named in message
    assert "config" in message


@pytest.mark.parametrize(
    ("content", "named"), [(b"{,}", "not valid JSON"), (b"\xff", "not UTF-8 text"), (b"[1]", "got list")]
)
def test_invalid_json_is_an_error_that_names_the_file(content, named, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=f"config.json:.* {named}"):
        read_config(tmp_path)


def test_missing_json_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: file is missing"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_model_must_be_a_directory_or_hub_name(name):
    with pytest.raises(UserError, match=f"model '{name}': no such directory"):
        resolve(name)


def test_unavailable_hub_name_is_an_error():
    with pytest.raises(UserError, match=r"model 'nobody/nothing': .*the Hub"):
        resolve("nobody/nothing")


@pytest.mark.parametrize(("name", "revision"), [("a/b", None), ("a/b@v1.0", "v1.0")])
def test_hub_models_are_downloaded_at_their_revision_without_pickles(name, revision, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **k: asked.update(repo=repo, **k) or tmp_path)
    assert resolve(name) == tmp_path
    assert (asked["repo"], asked["revision"]) == ("a/b", revision)
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])


def test_inspect_of_a_hub_name_downloads_no_weights(monkeypatch, tiny_model):
    directory = tiny_model()
    local = describe(directory, jax.sharding.AbstractMesh((1, 1, 1), MESH_AXES))
    (directory / "model.safetensors").unlink()
    asked = []

    def download(repo, revision, allow_patterns, ignore_patterns):
        asked.extend(allow_patterns)
        return directory

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    facts = describe("a/b", jax.sharding.AbstractMesh((1, 1, 1), MESH_AXES))
    assert "*.safetensors" not in asked
    assert facts["stored_as"] is None
    assert facts["parameters"] == local["parameters"]
    assert facts["bytes"] == local["bytes"]


def test_model_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "model").touch()
    with pytest.raises(UserError, match="no such directory"):
        resolve(tmp_path / "model")
