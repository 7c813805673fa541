"""The config.json of published checkpoints is read, and a field left out has the reference's default."""

import copy

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from colm_jax.checkpoints.families import from_huggingface, to_huggingface
from colm_jax.checkpoints.families.multimodal import MULTIMODAL
from colm_jax.checkpoints.families.reference import default_of
from colm_jax.errors import UserError
from tests.models.published import COMMON, PUBLISHED


def _without(fields, path):
    """The fields without the one at the path, which may lie within `text_config`."""
    fields = copy.deepcopy(fields)
    *outer, key = path
    inner = fields
    for part in outer:
        inner = inner[part]
    del inner[key]
    return fields


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    fields, expected = PUBLISHED[name]
    config = from_huggingface({**COMMON, **fields}, "config.json")
    for path, value in expected.items():
        found = config
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path
    assert from_huggingface(to_huggingface(config, "bfloat16", 1, 2), "config.json") == config


# What a file that leaves a field out means: (published file, field left out, path in ModelConfig, value).
LEFT_OUT = [
    ("Mistral-7B-v0.1", "sliding_window", "windows", (4096,) * 32),
    ("Mistral-7B-v0.1", "num_key_value_heads", "kv_heads", 8),
    ("Mixtral-8x7B", "rope_theta", "rope.theta", 1e6),
    ("Mixtral-8x7B", "sliding_window", "windows", None),
    ("llemma_7b", "rope_theta", "rope.theta", 1e4),
    ("llemma_7b", "num_key_value_heads", "kv_heads", 32),
    ("Qwen3-8B", "head_dim", "head_dim", 128),
    ("gemma-2-2b", "attn_logit_softcapping", "attention_softcap", 50.0),
    ("gemma-2-2b", "final_logit_softcapping", "logit_softcap", 30.0),
    ("gemma-2-2b", "head_dim", "head_dim", 256),
    ("gemma-3-1b", "rope_theta", "rope.theta", 1e6),
    ("gemma-3-1b", "rope_local_base_freq", "window_rope.theta", 1e4),
    ("gemma-3-1b", "sliding_window", "windows", (((4096,) * 5 + (None,)) * 5)[:26]),
    ("gemma-3-4b", "sliding_window_pattern", "windows", (((1024,) * 5 + (None,)) * 6)[:34]),
    ("gemma-3-4b", "hidden_size", "width", 2304),
    ("Mistral-Small-3.1-24B", "head_dim", "head_dim", 160),
    ("Phi-4", "rope_theta", "rope.theta", 1e4),
    ("Phi-3.5-mini", "original_max_position_embeddings", "rope.scaling.original_context", 4096),
    ("OLMo-2-1124-7B", "rope_theta", "rope.theta", 1e4),
    ("Olmo-3-7B", "layer_types", "windows", (4096, 4096, 4096, None) * 8),
    ("Olmo-3-7B", "rope_scaling", "rope.scaling", None),
    ("SmolLM3-3B", "rope_theta", "rope.theta", 2e6),
    ("SmolLM3-3B", "no_rope_layers", "rope_layers", (True, True, True, False) * 9),
    ("granite-3.3-8b", "attention_multiplier", "attention_multiplier", 1.0),
    ("granite-3.3-8b", "logits_scaling", "logit_divisor", 1.0),
    ("GLM-4-9B-0414", "partial_rotary_factor", "rope.dim", 64),
    ("GLM-4-9B-0414", "tie_word_embeddings", "tied", False),
    ("gpt-oss-20b", "layer_types", "windows", (128, None) * 12),
    ("gpt-oss-20b", "swiglu_limit", "activation_limit", 7.0),
    ("gpt-oss-20b", "rope_scaling", "rope.factor", 32.0),
    ("Devstral-2-123B", "rope_parameters", "temperature.scale", 0.1),
    ("Llama-4-Scout", "moe_layers", "mixtures", (True,) * 48),
    ("Llama-4-Scout", "attn_temperature_tuning", "temperature.scale", 0.1),
    ("Llama-4-Scout", "no_rope_layers", "rope_layers", (True, True, True, False) * 12),
    ("DeepSeek-V2-Lite", "q_lora_rank", "latent.query_rank", 1536),
    ("DeepSeek-V2-Lite", "n_group", "mixture.groups", 1),
    ("DeepSeek-V2-Lite", "first_k_dense_replace", "mixtures", (True,) * 27),
    ("DeepSeek-V3", "n_group", "mixture.groups", 8),
    ("DeepSeek-V3", "routed_scaling_factor", "mixture.scale", 2.5),
    ("DeepSeek-V3", "rope_scaling", "rope.scaling", None),
]


@pytest.mark.parametrize(("name", "field", "path", "expected"), LEFT_OUT)
def test_a_field_left_out_has_the_references_default(name, field, path, expected):
    fields = {**COMMON, **PUBLISHED[name][0]}
    path_in_file = ("text_config", field) if "text_config" in fields else (field,)
    found = from_huggingface(_without(fields, path_in_file), "config.json")
    for part in path.split("."):
        found = getattr(found, part)
    assert found == expected


@pytest.mark.parametrize(
    ("name", "field", "path"),
    [
        ("Mistral-7B-v0.1", "sliding_window", "windows"),
        ("gemma-2-2b", "attn_logit_softcapping", "attention_softcap"),
        ("gemma-2-2b", "final_logit_softcapping", "logit_softcap"),
    ],
)
def test_null_is_not_left_out(name, field, path):
    fields = {**COMMON, **PUBLISHED[name][0], field: None}
    assert getattr(from_huggingface(fields, "config.json"), path) is None


def test_windows_of_qwen_without_layers_named_are_where_the_reference_has_them():
    fields = {**COMMON, **PUBLISHED["Qwen2.5-7B"][0], "use_sliding_window": True, "sliding_window": 9}
    del fields["max_window_layers"]
    assert from_huggingface(fields, "config.json").windows == (None,) * 28 + (9,) * 4


REQUIRED = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers")
REQUIRED += ("query_pre_attn_scalar", "rms_norm_eps", "vocab_size")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_field_that_has_the_references_default_may_be_left_out(name):
    fields = {**COMMON, **PUBLISHED[name][0]}
    config = from_huggingface(fields, "config.json")
    nested = fields["model_type"] in MULTIMODAL
    inner = fields["text_config"] if nested else fields
    left_out = 0
    for key, value in inner.items():
        default = default_of(inner["model_type"], key)
        size = key in REQUIRED or (inner["model_type"] == "mixtral" and key.startswith("num_"))
        if key == "model_type" or type(default) is not type(value) or default != value:
            continue
        shorter = _without(fields, ("text_config", key) if nested else (key,))
        if size and not nested:
            with pytest.raises(UserError, match=f"'{key}' is missing"):
                from_huggingface(shorter, "config.json")
        else:
            assert from_huggingface(shorter, "config.json") == config, key
            left_out += 1
    assert left_out


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_means_the_same_in_transformers_own_spelling(name):
    fields = copy.deepcopy({**COMMON, **PUBLISHED[name][0]})
    if name == "Llama-4-Scout":  # a whole number in the file, which transformers 5 rejects
        fields["text_config"]["attn_temperature_tuning"] = True
    config = from_huggingface(fields, "config.json")
    inner = fields.get("text_config", fields)
    rewritten = CONFIG_MAPPING[inner["model_type"]](**copy.deepcopy(inner)).to_dict()
    rewritten = {**rewritten, "model_type": inner["model_type"], "tie_word_embeddings": config.tied}
    rewritten.pop("auto_map", None)
    assert from_huggingface(rewritten, "config.json") == config
