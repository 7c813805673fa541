"""Gemma 2 (soft caps, every second layer windowed) and the text models of Gemma 3 (query and key norms, a rope of
their own for windowed layers). Both: zero-centred norms before and after, scaled and tied embeddings.
"""

from typing import Any

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Fields,
    Json,
    Stored,
    layer_types,
    one_window,
    read_sizes,
    read_windows,
    write_both_ropes,
    write_rope,
    write_sizes,
)
from colm_jax.models.config import ModelConfig

_GELU = "gelu_pytorch_tanh"


def _read_common(fields: Fields, pattern: int) -> dict[str, Any]:
    for key in ("hidden_activation", "hidden_act"):
        fields.only(key, _GELU, None)
    fields.only("sliding_window_size", fields.config.get("sliding_window"), None)  # Gemma 2 9B and 27B name it twice
    fields.only("use_bidirectional_attention", False, None)
    sizes = read_sizes(fields, tied=True)
    bias = fields.get("attention_bias", bool, False)
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
        "attention_scalar": fields.number("query_pre_attn_scalar"),
        "attention_softcap": fields.number("attn_logit_softcapping", None),
        "logit_softcap": fields.number("final_logit_softcapping", None),
        "windows": read_windows(fields, sizes["depth"], fields.get("sliding_window", int, None), windowed),
    }


def _write_common(config: ModelConfig) -> Json:
    scalar = config.attention_scalar
    assert scalar is not None
    return {
        **write_sizes(config),
        "hidden_activation": _GELU,
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,  # transformers wants whole ones
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": one_window(config),
        "layer_types": layer_types(config),
    }


def _read_gemma3(fields: Fields) -> ModelConfig:
    pattern = fields.get("sliding_window_pattern", int, fields.get("_sliding_window_pattern", int, 6))
    found = fields.get("rope_parameters", dict, None)
    if found is not None and set(found) <= {"full_attention", "sliding_attention"}:
        rope, local = (
            fields.rope_of(found.get(kind) or {}, fields.number(old, None))
            for kind, old in (("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq"))
        )
        fields.get("rope_scaling", dict, None)
    else:
        rope, local = fields.rope(), fields.rope_of({}, fields.number("rope_local_base_freq"))
    common = _read_common(fields, pattern)
    return ModelConfig(family="gemma3_text", **common, rope=rope, window_rope=local, qk_norm=True)


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
    lambda fields: ModelConfig(family="gemma2", **_read_common(fields, pattern=2), rope=fields.rope()),
    lambda config: {**_write_common(config), **write_both_ropes(config.rope)},
    _TABLE,
)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma3, _TABLE)
