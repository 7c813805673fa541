"""GLM-4 (0414): interleaved rotary positions on part of a head, norms before and after, a fused feed-forward kernel."""

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Stored,
    gate_and_up,
    read_sizes,
    read_uniform_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import RopeRules, read_rope, write_both_ropes
from colm_jax.models.config import ModelConfig


def _read(fields: Fields) -> ModelConfig:
    fields.only("hidden_act", "silu")
    sizes = read_sizes(fields)
    return ModelConfig(
        family="glm4",
        **sizes,
        rope=read_rope(fields, RopeRules(partial=True, interleaved=True)),
        windows=read_uniform_windows(fields, sizes["depth"], None),
        qkv_bias=fields.optional("attention_bias", bool),
        post_norm=True,
    )


def _write(config: ModelConfig) -> Json:
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope, config.head_dim),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
    }


_LAYER = "model.layers.{}."
GLM4 = Family(
    "glm4",
    "Glm4ForCausalLM",
    _read,
    _write,
    {
        **TABLE,
        **gate_and_up(_LAYER + "mlp.gate_up_proj.weight"),
        "layers.attention_post_norm.scale": Stored(_LAYER + "post_self_attn_layernorm.weight", "same"),
        "layers.feed_forward_post_norm.scale": Stored(_LAYER + "post_mlp_layernorm.weight", "same"),
    },
)
