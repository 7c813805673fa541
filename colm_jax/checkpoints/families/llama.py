"""Llama 1 to 3, CodeLlama, and models in their format: Meditron, Llemma, Vicuna, TinyLlama, ..."""

from typing import Any

from colm_jax.checkpoints.families.family import TABLE, Family, read_sizes, read_uniform_windows, write_sizes
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import read_rope, write_both_ropes
from colm_jax.models.config import ModelConfig


def read_llama(fields: Fields) -> dict[str, Any]:
    """Return what a Llama's config.json says, by the fields of `ModelConfig`."""
    fields.only("hidden_act", "silu")
    sizes, bias = read_sizes(fields), fields.optional("attention_bias", bool)
    return {
        **sizes,
        "rope": read_rope(fields),
        "windows": read_uniform_windows(fields, sizes["depth"], None),
        "qkv_bias": bias,
        "out_bias": bias,
        "ff_bias": fields.optional("mlp_bias", bool),
    }


def write_llama(config: ModelConfig) -> Json:
    """Return the fields of `read_llama`; its inverse."""
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.ff_bias,
    }


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    lambda fields: ModelConfig(family="llama", **read_llama(fields)),
    write_llama,
    TABLE,
)
