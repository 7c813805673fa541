"""gpt-oss: mixtures with biases everywhere, attention sinks, a window in every second layer, YaRN."""

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
from colm_jax.checkpoints.families.rope import read_rope, write_both_ropes
from colm_jax.models.config import Mixture, ModelConfig


def _read(fields: Fields) -> ModelConfig:
    fields.only("hidden_act", "silu")
    sizes, bias = read_sizes(fields), fields.optional("attention_bias", bool)
    windowed = [i % 2 == 0 for i in range(sizes["depth"])]
    mixture = Mixture(
        networks=fields.optional("num_local_experts", int),
        active=fields.optional("num_experts_per_tok", int),
        bias="router",
        network_bias=True,
    )
    return ModelConfig(
        family="gpt_oss",
        **sizes,
        rope=read_rope(fields),
        activation="clamped_swish",
        activation_limit=fields.optional("swiglu_limit", float),
        activation_slope=fields.optional("swiglu_alpha", float),
        qkv_bias=bias,
        out_bias=bias,
        sinks=True,
        windows=read_windows(fields, sizes["depth"], fields.optional("sliding_window", int, None), windowed),
        mixture=mixture,
    )


def _write(config: ModelConfig) -> Json:
    assert config.mixture is not None
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "swiglu_limit": config.activation_limit,
        "swiglu_alpha": config.activation_slope,
        "sliding_window": one_window(config),
        "layer_types": layer_types(config),
        "num_local_experts": config.mixture.networks,
        "num_experts_per_tok": config.mixture.active,
    }


_MLP = "model.layers.{}.mlp."
_FF = "feed_forward."
_KERNELS, _BIASES = (_FF + "gate", _FF + "up"), (_FF + "gate_bias", _FF + "up_bias")
GPT_OSS = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    _read,
    _write,
    {
        **TABLE,
        "layers.attention.sinks": Stored("model.layers.{}.self_attn.sinks", "same"),
        "layers.feed_forward.router.kernel": Stored(_MLP + "router.weight", "transposed"),
        "layers.feed_forward.router.bias": Stored(_MLP + "router.bias", "same"),
        **{
            f"layers.{path}": Stored(_MLP + "experts.gate_up_proj", "same", _KERNELS, interleaved=True, stacked=True)
            for path in _KERNELS
        },
        **{
            f"layers.{path}": Stored(_MLP + "experts.gate_up_proj_bias", "same", _BIASES, interleaved=True)
            for path in _BIASES
        },
        "layers.feed_forward.down": Stored(_MLP + "experts.down_proj", "same", stacked=True),
        "layers.feed_forward.down_bias": Stored(_MLP + "experts.down_proj_bias", "same"),
    },
)
