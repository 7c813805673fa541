"""Qwen 2 and 2.5 (biases on query, key and value) and Qwen 3 (query and key norms, a head size of its own)."""

from typing import Any

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Fields,
    Json,
    layer_types,
    one_window,
    read_sizes,
    read_windows,
    write_both_ropes,
    write_sizes,
)
from colm_jax.models.config import ModelConfig


def _read_common(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    fields.only("use_mrope", False)
    sizes = read_sizes(fields, tied=False)
    window = fields.get("sliding_window", int, None)  # files name one that is not in use
    first = fields.get("max_window_layers", int, sizes["depth"])
    used = fields.get("use_sliding_window", bool, False)
    if used and fields.absent("max_window_layers") and fields.absent("layer_types"):
        raise fields.error("'use_sliding_window' is true, and neither 'max_window_layers' nor 'layer_types' says where")
    windows = read_windows(fields, sizes["depth"], window, [used and i >= first for i in range(sizes["depth"])])
    if windows is not None and not used:
        raise fields.error("'layer_types' has windowed layers, and 'use_sliding_window' is false")
    return {**sizes, "rope": fields.rope(), "windows": windows}


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
    bias = fields.get("attention_bias", bool, False)
    return ModelConfig(family="qwen3", **_read_common(fields), qkv_bias=bias, out_bias=bias, qk_norm=True)


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
