"""Granite 3: Llama with four multipliers, of embeddings, attention scores, residual additions and logits."""

from colm_jax.checkpoints.families.family import TABLE, Family, read_sizes, read_uniform_windows, write_sizes
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import read_rope, write_both_ropes
from colm_jax.models.config import ModelConfig

_MULTIPLIERS = {
    "embedding_multiplier": "embedding_multiplier",
    "attention_multiplier": "attention_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logit_divisor",
}


def _read(fields: Fields) -> ModelConfig:
    fields.only("hidden_act", "silu")
    sizes, bias = read_sizes(fields), fields.optional("attention_bias", bool)
    return ModelConfig(
        family="granite",
        **sizes,
        **{ours: fields.optional(theirs, float) for theirs, ours in _MULTIPLIERS.items()},
        rope=read_rope(fields),
        windows=read_uniform_windows(fields, sizes["depth"], None),
        qkv_bias=bias,
        out_bias=bias,
        ff_bias=fields.optional("mlp_bias", bool),
    )


def _write(config: ModelConfig) -> Json:
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        **{theirs: getattr(config, ours) for theirs, ours in _MULTIPLIERS.items()},
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.ff_bias,
    }


GRANITE = Family("granite", "GraniteForCausalLM", _read, _write, TABLE)
