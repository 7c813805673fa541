"""Mistral: Llama with a sliding window on every layer (none in later releases). Mixtral: with mixture layers too."""

from typing import Any

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Stored,
    one_window,
    read_sizes,
    read_uniform_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import read_rope, write_both_ropes
from colm_jax.models.config import Mixture, ModelConfig


def _read_common(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    sizes, window = read_sizes(fields), fields.optional("sliding_window", int, None)
    return {**sizes, "rope": read_rope(fields), "windows": read_uniform_windows(fields, sizes["depth"], window)}


def _write_common(config: ModelConfig) -> Json:
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "sliding_window": one_window(config),
    }


def _read_mixtral(fields: Fields) -> ModelConfig:
    mixture = Mixture(fields.get("num_local_experts", int), fields.get("num_experts_per_tok", int))
    return ModelConfig(family="mixtral", **_read_common(fields), mixture=mixture)


def _write_mixtral(config: ModelConfig) -> Json:
    assert config.mixture is not None
    return {
        **_write_common(config),
        "num_local_experts": config.mixture.networks,
        "num_experts_per_tok": config.mixture.active,
    }


_MIXTURE = "model.layers.{}.block_sparse_moe."
MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    lambda fields: ModelConfig(family="mistral", **_read_common(fields)),
    _write_common,
    TABLE,
)
MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    _read_mixtral,
    _write_mixtral,
    {
        **TABLE,
        "layers.feed_forward.router.kernel": Stored(_MIXTURE + "gate.weight", "transposed"),
        "layers.feed_forward.gate": Stored(_MIXTURE + "experts.{}.w1.weight", "transposed"),
        "layers.feed_forward.up": Stored(_MIXTURE + "experts.{}.w3.weight", "transposed"),
        "layers.feed_forward.down": Stored(_MIXTURE + "experts.{}.w2.weight", "transposed"),
    },
)
