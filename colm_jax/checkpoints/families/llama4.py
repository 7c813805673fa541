"""The text models of Llama 4: mixtures with a shared network, chunked attention, layers without rotary positions."""

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Stored,
    layer_types,
    one_window,
    read_rope_layers,
    read_sizes,
    read_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import RopeRules, read_rope, write_both_ropes
from colm_jax.models.config import Mixture, ModelConfig, Temperature

_CHUNKED = "chunked_attention"


def _read(fields: Fields) -> ModelConfig:
    fields.only("hidden_act", "silu")
    sizes, bias = read_sizes(fields), fields.optional("attention_bias", bool)
    depth, network_ff = sizes["depth"], sizes["ff"]
    rotated, chunk = read_rope_layers(fields, depth), fields.optional("attention_chunk_size", int, None)
    by_default = [rope and chunk is not None for rope in rotated]
    tuned = _tuned(fields)
    scale, span = fields.optional("attn_scale", float), fields.optional("floor_scale", int)
    mixture = Mixture(
        networks=fields.optional("num_local_experts", int),
        active=fields.optional("num_experts_per_tok", int),
        ff=network_ff,
        scoring="sigmoid",
        normalised=False,
        on_input=True,
        shared_ff=network_ff,
    )
    mixtures = _mixture_layers(fields, depth)
    return ModelConfig(
        family="llama4_text",
        **{**sizes, "ff": fields.optional("intermediate_size_mlp", int)},
        rope=read_rope(fields, RopeRules(interleaved=True)),
        rope_layers=rotated,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="unit" if fields.optional("use_qk_norm", bool) else None,
        windows=read_windows(fields, depth, chunk, by_default, _CHUNKED),
        chunked=True,
        temperature=Temperature(scale, span, offset=1, unrotated_only=True) if tuned else None,
        mixture=mixture,
        mixture_layers=mixtures,
    )


def _tuned(fields: Fields) -> bool:
    """Return whether queries grow with their position. Early files have a whole number; 0 is false."""
    key = "attn_temperature_tuning"
    old = fields.config.get(key)
    is_number = isinstance(old, int) and not isinstance(old, bool)
    return bool(fields.given(key, int)) if is_number else fields.optional(key, bool)


def _mixture_layers(fields: Fields, depth: int) -> tuple[bool, ...]:
    """Return which layers are mixtures: those listed in `moe_layers`, or every `interleave_moe_layer_step`-th."""
    listed, step = fields.given("moe_layers", list), fields.optional("interleave_moe_layer_step", int)
    if listed is None:
        if step < 1:
            raise fields.error(f"field 'interleave_moe_layer_step' must be at least 1, got {step}")
        listed = list(range(step - 1, depth, step))
    if any(not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < depth for i in listed):
        raise fields.error(f"'moe_layers' must be numbers of layers from 0 to {depth - 1}, got {listed!r:.80}")
    if not listed:
        raise fields.error("no layer is a mixture ('moe_layers' is empty); such a Llama 4 does not exist")
    return tuple(i in listed for i in range(depth))


def _write(config: ModelConfig) -> Json:
    mixture, temperature = config.mixture, config.temperature
    assert mixture is not None and config.rope_layers is not None
    tuning = {} if temperature is None else {"attn_scale": temperature.scale, "floor_scale": temperature.span}
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "intermediate_size": mixture.ff,
        "intermediate_size_mlp": config.ff,
        "use_qk_norm": config.qk_norm == "unit",
        "no_rope_layers": [int(rope) for rope in config.rope_layers],
        "attention_chunk_size": one_window(config),
        "layer_types": layer_types(config, _CHUNKED),
        "attn_temperature_tuning": temperature is not None,
        **tuning,
        "num_local_experts": mixture.networks,
        "num_experts_per_tok": mixture.active,
        "moe_layers": [i for i, is_mixture in enumerate(config.mixtures) if is_mixture],
    }


_FF = "model.layers.{}.feed_forward."
_KERNELS = ("feed_forward.gate", "feed_forward.up")
_NAMES = ("gate", "up", "down")
LLAMA4 = Family(
    "llama4_text",
    "Llama4ForCausalLM",
    _read,
    _write,
    {
        **TABLE,
        "layers.feed_forward.router.kernel": Stored(_FF + "router.weight", "transposed"),
        **{f"layers.{path}": Stored(_FF + "experts.gate_up_proj", "same", _KERNELS, stacked=True) for path in _KERNELS},
        "layers.feed_forward.down": Stored(_FF + "experts.down_proj", "same", stacked=True),
        **{
            f"layers.feed_forward.shared.{name}.kernel": Stored(f"{_FF}shared_expert.{name}_proj.weight", "transposed")
            for name in _NAMES
        },
        **{f"layers.feed_forward.{name}.kernel": Stored(f"{_FF}{name}_proj.weight", "transposed") for name in _NAMES},
    },
)
