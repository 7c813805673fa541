"""OLMo 2 (no norms before attention and feed-forward, only after; query and key norms over all heads) and OLMo 3 (with
sliding windows, and a rope of their own for windowed layers).
"""

from typing import Any

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Stored,
    layer_types,
    one_window,
    read_sizes,
    read_uniform_windows,
    read_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import read_rope, read_ropes_by_layer, write_both_ropes, write_rope
from colm_jax.models.config import ModelConfig

_PATTERN = 4  # by default every fourth layer has no window


def _read_common(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    bias = fields.optional("attention_bias", bool)
    norms = {"qk_norm": "joint", "pre_norm": False, "post_norm": True}
    return {**read_sizes(fields), **norms, "qkv_bias": bias, "out_bias": bias}


def _write_common(config: ModelConfig) -> Json:
    return {**write_sizes(config), "hidden_act": "silu", "attention_bias": config.qkv_bias}


def _read_olmo2(fields: Fields) -> ModelConfig:
    common = _read_common(fields)
    windows = read_uniform_windows(fields, common["depth"], None)
    return ModelConfig(family="olmo2", **common, windows=windows, rope=read_rope(fields))


def _read_olmo3(fields: Fields) -> ModelConfig:
    common = _read_common(fields)
    by_default = [(i + 1) % _PATTERN != 0 for i in range(common["depth"])]
    windows = read_windows(fields, common["depth"], fields.optional("sliding_window", int, None), by_default)
    # A theta beside `rope_parameters` is that of full layers, as in transformers.
    rope, window_rope = read_ropes_by_layer(fields, ("rope_theta", None))
    return ModelConfig(family="olmo3", **common, windows=windows, rope=rope, window_rope=window_rope)


def _write_olmo3(config: ModelConfig) -> Json:
    assert config.window_rope is not None
    ropes = {"full_attention": write_rope(config.rope), "sliding_attention": write_rope(config.window_rope)}
    windows = {"sliding_window": one_window(config), "layer_types": layer_types(config)}
    return {**_write_common(config), "rope_parameters": ropes, **windows}


_LAYER = "model.layers.{}."
_TABLE = {
    **TABLE,
    "layers.attention.query_norm.scale": Stored(_LAYER + "self_attn.q_norm.weight", "flat"),
    "layers.attention.key_norm.scale": Stored(_LAYER + "self_attn.k_norm.weight", "flat"),
    "layers.attention_post_norm.scale": Stored(_LAYER + "post_attention_layernorm.weight", "same"),
    "layers.feed_forward_post_norm.scale": Stored(_LAYER + "post_feedforward_layernorm.weight", "same"),
}
OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    _read_olmo2,
    lambda config: {**_write_common(config), **write_both_ropes(config.rope)},
    _TABLE,
)
OLMO3 = Family("olmo3", "Olmo3ForCausalLM", _read_olmo3, _write_olmo3, _TABLE)
