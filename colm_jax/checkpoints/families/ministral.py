"""Ministral: Mistral with a sliding window in some layers; Ministral 3: YaRN, and queries that grow with positions."""

from typing import Any

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    layer_types,
    one_window,
    read_sizes,
    read_uniform_windows,
    read_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.reference import default_rope
from colm_jax.checkpoints.families.rope import read_rope, write_rope
from colm_jax.models.config import ModelConfig, Temperature
from colm_jax.models.rope_config import Yarn

_BETA = "llama_4_scaling_beta"  # within rope_parameters


def _read_common(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    return {**read_sizes(fields), "rope": read_rope(fields)}


def _write_common(config: ModelConfig) -> Json:
    return {**write_sizes(config), "hidden_act": "silu", "sliding_window": one_window(config)}


def _read_ministral(fields: Fields) -> ModelConfig:
    common, window = _read_common(fields), fields.optional("sliding_window", int, None)
    depth = common["depth"]
    windows = read_windows(fields, depth, window, [window is not None] * depth)
    return ModelConfig(family="ministral", **common, windows=windows)


def _read_ministral3(fields: Fields) -> ModelConfig:
    common, window = _read_common(fields), fields.optional("sliding_window", int, None)
    found = fields.given("rope_parameters", dict) or fields.given("rope_scaling", dict)
    beta = (default_rope(fields.model_type) if found is None else found).get(_BETA)
    if not isinstance(beta, int | float) or isinstance(beta, bool):
        raise fields.error(f"rope_parameters: field {_BETA!r} is missing or no number: {beta!r:.80}")
    scaling = common["rope"].scaling
    if not isinstance(scaling, Yarn):
        raise fields.error("rope_parameters: rope type 'yarn' is expected in this family: queries grow by its context")
    return ModelConfig(
        family="ministral3",
        **common,
        windows=read_uniform_windows(fields, common["depth"], window),
        temperature=Temperature(float(beta), scaling.original_context, offset=0, unrotated_only=False),
    )


def _write_ministral3(config: ModelConfig) -> Json:
    assert config.temperature is not None
    rope = {**write_rope(config.rope), _BETA: config.temperature.scale}
    return {**_write_common(config), "rope_parameters": rope}


MINISTRAL = Family(
    "ministral",
    "MinistralForCausalLM",
    _read_ministral,
    lambda config: {
        **_write_common(config),
        "rope_parameters": write_rope(config.rope),
        "layer_types": layer_types(config),
    },
    TABLE,
)
MINISTRAL3 = Family("ministral3", "Ministral3ForCausalLM", _read_ministral3, _write_ministral3, TABLE)
