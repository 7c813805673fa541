"""Llama 1 to 3, CodeLlama, and what shares their files: Meditron, Llemma, Vicuna, TinyLlama, ..."""

from colm_jax.checkpoints.families.family import TABLE, Family, Fields, Json, read_sizes, write_both_ropes, write_sizes
from colm_jax.models.config import ModelConfig


def _read(fields: Fields) -> ModelConfig:
    fields.only("hidden_act", "silu")
    fields.only("rope_interleaved", False)
    bias = fields.get("attention_bias", bool, False)
    return ModelConfig(
        family="llama",
        **read_sizes(fields, tied=False),
        rope=fields.rope(default_theta=10000.0),  # Llama 2's files leave it out
        qkv_bias=bias,
        out_bias=bias,
        ff_bias=fields.get("mlp_bias", bool, False),
    )


def _write(config: ModelConfig) -> Json:
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.ff_bias,
    }


LLAMA = Family("llama", "LlamaForCausalLM", _read, _write, TABLE)
