"""Mistral: Llama with a sliding window on every layer (none in later releases). Mixtral: a mixture in each as well."""

from typing import Any

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Fields,
    Json,
    Stored,
    one_window,
    read_sizes,
    write_both_ropes,
    write_sizes,
)
from colm_jax.models.config import Mixture, ModelConfig


def _read_common(fields: Fields, window_left_out: int | None) -> dict[str, Any]:
    """`window_left_out` is what a file without the field means; null is no window in both."""
    fields.only("hidden_act", "silu")
    sizes, window = read_sizes(fields, tied=False), fields.get("sliding_window", int, None)
    if fields.absent("sliding_window"):
        window = window_left_out
    return {**sizes, "rope": fields.rope(), "windows": None if window is None else (window,) * sizes["depth"]}


def _write_common(config: ModelConfig) -> Json:
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "sliding_window": one_window(config),
    }


def _read_mixtral(fields: Fields) -> ModelConfig:
    mixture = Mixture(fields.get("num_local_experts", int), fields.get("num_experts_per_tok", int))
    return ModelConfig(family="mixtral", **_read_common(fields, None), mixture=mixture)


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
    lambda fields: ModelConfig(family="mistral", **_read_common(fields, 4096)),
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
