"""Mixtures of Qwen: Qwen 1.5 and 2 MoE (a shared network with a gate of its own), and Qwen 3 MoE."""

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
from colm_jax.checkpoints.families.rope import read_rope, write_both_ropes
from colm_jax.models.config import Mixture, ModelConfig


def _read_common(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    sizes = read_sizes(fields)
    return {**sizes, "rope": read_rope(fields), "mixture_layers": _mixture_layers(fields, sizes["depth"])}


def _read_mixture(fields: Fields, **own: Any) -> Mixture:
    return Mixture(
        networks=fields.optional("num_experts", int),
        active=fields.optional("num_experts_per_tok", int),
        ff=fields.optional("moe_intermediate_size", int),
        normalised=fields.optional("norm_topk_prob", bool),
        **own,
    )


def _mixture_layers(fields: Fields, depth: int) -> tuple[bool, ...]:
    """Return which layers are mixtures: every `decoder_sparse_step`-th, except those of `mlp_only_layers`."""
    step, dense = fields.optional("decoder_sparse_step", int), fields.optional("mlp_only_layers", list, [])
    if step < 1:
        raise fields.error(f"field 'decoder_sparse_step' must be at least 1, got {step}")
    if any(not isinstance(i, int) or isinstance(i, bool) for i in dense):
        raise fields.error(f"'mlp_only_layers' must be numbers of layers, got {dense!r:.80}")
    return tuple((i + 1) % step == 0 and i not in dense for i in range(depth))


def _write_common(config: ModelConfig) -> Json:
    mixture = config.mixture
    assert mixture is not None
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "num_experts": mixture.networks,
        "num_experts_per_tok": mixture.active,
        "moe_intermediate_size": mixture.ff,
        "norm_topk_prob": mixture.normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, is_mixture in enumerate(config.mixtures) if not is_mixture],
    }


def _window(fields: Fields) -> int | None:
    """Return the size of sliding windows; None if the file says that they are not used."""
    used, window = fields.optional("use_sliding_window", bool), fields.optional("sliding_window", int, None)
    return window if used else None


def _write_window(config: ModelConfig) -> Json:
    return {"use_sliding_window": config.windows is not None, "sliding_window": one_window(config)}


def _read_qwen2(fields: Fields) -> ModelConfig:
    common, window = _read_common(fields), _window(fields)
    first = fields.optional("max_window_layers", int)
    by_depth = [window is not None and i % 2 == 0 and i < first for i in range(common["depth"])]
    mixture = _read_mixture(fields, shared_ff=fields.optional("shared_expert_intermediate_size", int), shared_gate=True)
    return ModelConfig(
        family="qwen2_moe",
        **common,
        windows=read_windows(fields, common["depth"], window, by_depth),
        qkv_bias=fields.optional("qkv_bias", bool),
        mixture=mixture,
    )


def _write_qwen2(config: ModelConfig) -> Json:
    assert config.mixture is not None
    own = {"shared_expert_intermediate_size": config.mixture.shared_ff, "qkv_bias": config.qkv_bias}
    return {**_write_common(config), **_write_window(config), "layer_types": layer_types(config), **own}


def _read_qwen3(fields: Fields) -> ModelConfig:
    bias, common = fields.optional("attention_bias", bool), _read_common(fields)
    return ModelConfig(
        family="qwen3_moe",
        **common,
        windows=read_uniform_windows(fields, common["depth"], _window(fields)),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head",
        mixture=_read_mixture(fields),
    )


def _write_qwen3(config: ModelConfig) -> Json:
    return {**_write_common(config), **_write_window(config), "attention_bias": config.qkv_bias}


_MLP = "model.layers.{}.mlp."
_NAMES = ("gate", "up", "down")
_TABLE = {
    **TABLE,
    "layers.feed_forward.router.kernel": Stored(_MLP + "gate.weight", "transposed"),
    "layers.feed_forward.shared_gate.kernel": Stored(_MLP + "shared_expert_gate.weight", "transposed"),
    **{
        f"layers.feed_forward.{name}": Stored(f"{_MLP}experts.{{}}.{name}_proj.weight", "transposed") for name in _NAMES
    },
    **{
        f"layers.feed_forward.shared.{name}.kernel": Stored(f"{_MLP}shared_expert.{name}_proj.weight", "transposed")
        for name in _NAMES
    },
}
QWEN2_MOE = Family("qwen2_moe", "Qwen2MoeForCausalLM", _read_qwen2, _write_qwen2, _TABLE)
QWEN3_MOE = Family("qwen3_moe", "Qwen3MoeForCausalLM", _read_qwen3, _write_qwen3, _TABLE)
