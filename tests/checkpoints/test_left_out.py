"""What published checkpoints hold besides the model: DeepSeek-V3's layers for predicting several tokens at once."""

import numpy as np
import pytest

from colm_jax.checkpoints.families import from_huggingface
from colm_jax.checkpoints.huggingface import load_model, match_tensors, save_tensors, to_tensors
from colm_jax.errors import UserError
from tests.models.families import CONFIGS, weights, write_family

DEPTH = CONFIGS["deepseek-v3"]["num_hidden_layers"]
# The names in the published files; `shared_head` and `embed_tokens` repeat the model's own.
NAMES = ("embed_tokens.weight", "enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight")
NAMES += ("shared_head.head.weight", "self_attn.kv_b_proj.weight", "mlp.experts.0.up_proj.weight")


def write(directory, name="deepseek-v3", layers=(DEPTH,), **changes):
    """A family's directory with layers after the last one."""
    write_family(directory, name, **changes)
    more = {f"model.layers.{i}.{part}": np.full((2, 2), np.nan, np.float32) for i in layers for part in NAMES}
    save_tensors(weights(CONFIGS[name]) | more, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        ((DEPTH,), {}),  # the reference's default is one
        ((DEPTH,), {"num_nextn_predict_layers": 1}),
        ((DEPTH, DEPTH + 1), {"num_nextn_predict_layers": 2}),
        ((DEPTH,), {"num_mtp_layers": 1}),
        ((), {"num_nextn_predict_layers": 0}),
    ],
)
def test_layers_that_predict_several_tokens_are_left_out(layers, changes, tmp_path, mesh):
    directory = write(tmp_path / "m", layers=layers, **changes)
    found = to_tensors(load_model(directory, "float32", mesh)[0])
    expected = weights(CONFIGS["deepseek-v3"])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("name", "layers", "changes"),
    [
        ("deepseek-v3", (DEPTH + 1,), {}),
        ("deepseek-v3", (DEPTH,), {"num_nextn_predict_layers": 0}),
        ("deepseek-v3", (DEPTH, DEPTH + 1, DEPTH + 2), {"num_nextn_predict_layers": 2}),
        ("deepseek-v2", (DEPTH,), {"num_nextn_predict_layers": 1}),
        ("llama", (DEPTH,), {"num_nextn_predict_layers": 1}),
    ],
)
def test_a_layer_beyond_them_is_an_error(name, layers, changes, tmp_path):
    with pytest.raises(UserError, match=rf"unknown tensor 'model\.layers\.{layers[-1]}\."):
        match_tensors(write(tmp_path / "m", name, layers, **changes))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_nextn_predict_layers": -1}, "'num_nextn_predict_layers' must not be below 0, got -1"),
        (
            {"num_nextn_predict_layers": 1, "num_mtp_layers": 2},
            r"'num_nextn_predict_layers' \(1\) and 'num_mtp_layers'",
        ),
        ({"num_nextn_predict_layers": "1"}, "'num_nextn_predict_layers' has a wrong type"),
    ],
)
def test_their_number_is_checked(fields, reason):
    with pytest.raises(UserError, match=reason):
        from_huggingface({**CONFIGS["deepseek-v3"], **fields}, "config.json")


@pytest.mark.parametrize("name", ["phi3", "deepseek-v2", "deepseek-v3"])
def test_code_that_transformers_has_since_is_not_needed(name):
    architecture = {"phi3": "Phi3", "deepseek-v2": "DeepseekV2", "deepseek-v3": "DeepseekV3"}[name] + "ForCausalLM"
    expected = from_huggingface(CONFIGS[name], "config.json")
    for prefix in ("modeling.", "owner/name--modeling."):
        fields = {**CONFIGS[name], "auto_map": {"AutoModelForCausalLM": prefix + architecture}}
        assert from_huggingface(fields, "config.json") == expected
    for wrong in ({"AutoModelForCausalLM": "modeling.Other"}, {"AutoConfig": f"c.{architecture}"}, [architecture], "x"):
        with pytest.raises(UserError, match="its own code, which is never run"):
            from_huggingface({**CONFIGS[name], "auto_map": wrong}, "config.json")


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_a_mixture_without_shared_experts_is_refused_by_its_field(name):
    with pytest.raises(UserError, match=r"config\.json: field 'n_shared_experts' must be at least 1, got 0$"):
        from_huggingface({**CONFIGS[name], "n_shared_experts": 0}, "config.json")
