"""Gemma 2 (soft caps, every second layer windowed) and the text models of Gemma 3 (query and key norms, a separate rope
for windowed layers). Both: zero-centred norms before and after each block, scaled and tied embeddings.
"""

from typing import Any

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Stored,
    layer_types,
    one_window,
    read_sizes,
    read_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import read_rope, read_ropes_by_layer, write_both_ropes, write_rope
from colm_jax.models.config import ModelConfig

_GELU = "gelu_pytorch_tanh"
_GEMMA3_PATTERN = 6  # by default every sixth layer has no window


def _read_common(fields: Fields, pattern: int) -> dict[str, Any]:
    for key in ("hidden_activation", "hidden_act"):
        fields.only(key, _GELU, None)
    window = fields.optional("sliding_window", int, None)
    fields.only("sliding_window_size", window, None)  # duplicate in Gemma 2 9B and 27B
    fields.only("use_bidirectional_attention", False, None)
    sizes = read_sizes(fields)
    bias = fields.optional("attention_bias", bool)
    if pattern < 1:
        raise fields.error(f"'sliding_window_pattern' must be at least 1, got {pattern}")
    windowed = [(i + 1) % pattern != 0 for i in range(sizes["depth"])]
    return {
        **sizes,
        "activation": "gelu_tanh",
        "qkv_bias": bias,
        "out_bias": bias,
        "post_norm": True,
        "zero_centred_norm": True,
        "scaled_embedding": True,
        "attention_scalar": fields.get("query_pre_attn_scalar", float),
        "attention_softcap": fields.optional("attn_logit_softcapping", float, None),
        "logit_softcap": fields.optional("final_logit_softcapping", float, None),
        "windows": read_windows(fields, sizes["depth"], window, windowed),
    }


def _write_common(config: ModelConfig) -> Json:
    scalar = config.attention_scalar
    assert scalar is not None
    return {
        **write_sizes(config),
        "hidden_activation": _GELU,
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": int(scalar)
        if scalar == int(scalar)
        else scalar,  # transformers expects an int if whole
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": one_window(config),
        "layer_types": layer_types(config),
    }


def _read_gemma3(fields: Fields) -> ModelConfig:
    fields.only("attn_logit_softcapping", None)  # transformers' attention has none in this family
    pattern, written = (fields.given(key, int) for key in ("sliding_window_pattern", "_sliding_window_pattern"))
    pattern = _GEMMA3_PATTERN if pattern is None else pattern
    if written not in (None, pattern) and fields.given("layer_types", list) is None:
        raise fields.error(
            f"'_sliding_window_pattern' is {written}, which transformers writes and never reads; name it "
            "'sliding_window_pattern'"
        )
    rope, window_rope = read_ropes_by_layer(fields)
    common = _read_common(fields, pattern)
    return ModelConfig(family="gemma3_text", **common, rope=rope, window_rope=window_rope, qk_norm="head")


def _write_gemma3(config: ModelConfig) -> Json:
    assert config.window_rope is not None
    ropes = {"full_attention": write_rope(config.rope), "sliding_attention": write_rope(config.window_rope)}
    return {**_write_common(config), "rope_parameters": ropes}


_LAYER = "model.layers.{}."
_TABLE = {
    **TABLE,
    "layers.attention_post_norm.scale": Stored(_LAYER + "post_attention_layernorm.weight", "same"),
    "layers.feed_forward_norm.scale": Stored(_LAYER + "pre_feedforward_layernorm.weight", "same"),
    "layers.feed_forward_post_norm.scale": Stored(_LAYER + "post_feedforward_layernorm.weight", "same"),
}
GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    lambda fields: ModelConfig(family="gemma2", **_read_common(fields, pattern=2), rope=read_rope(fields)),
    lambda config: {**_write_common(config), **write_both_ropes(config.rope)},
    _TABLE,
)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma3, _TABLE)
