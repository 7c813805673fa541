"""Qwen 2 and 2.5 (biases on query, key and value) and Qwen 3 (query and key norms, an explicit head size)."""

from typing import Any

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    layer_types,
    one_window,
    read_sizes,
    read_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import read_rope, write_both_ropes
from colm_jax.models.config import ModelConfig


def _read_common(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    sizes = read_sizes(fields)
    used, window = fields.optional("use_sliding_window", bool), fields.optional("sliding_window", int, None)
    first = fields.optional("max_window_layers", int)
    by_depth = [used and window is not None and i >= first for i in range(sizes["depth"])]
    windows = read_windows(fields, sizes["depth"], window, by_depth)
    if windows is not None and not used:  # files may set a window that is not used
        raise fields.error("'layer_types' has windowed layers, but 'use_sliding_window' is false")
    return {**sizes, "rope": read_rope(fields), "windows": windows}


def _write_common(config: ModelConfig) -> Json:
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "use_sliding_window": config.windows is not None,
        "sliding_window": one_window(config),
        "layer_types": layer_types(config),
    }


def _read_qwen3(fields: Fields) -> ModelConfig:
    bias = fields.optional("attention_bias", bool)
    return ModelConfig(family="qwen3", **_read_common(fields), qkv_bias=bias, out_bias=bias, qk_norm="head")


QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    lambda fields: ModelConfig(family="qwen2", **_read_common(fields), qkv_bias=True),
    _write_common,
    TABLE,
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    _read_qwen3,
    lambda config: {**_write_common(config), "attention_bias": config.qkv_bias},
    TABLE,
)
