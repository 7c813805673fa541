"""SmolLM3: Llama in which some layers have no rotary positions. (SmolLM 1 and 2 are of the family llama.)"""

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    layer_types,
    one_window,
    read_rope_layers,
    read_sizes,
    read_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import read_rope, write_both_ropes
from colm_jax.models.config import ModelConfig


def _read(fields: Fields) -> ModelConfig:
    fields.only("hidden_act", "silu")
    sizes, bias = read_sizes(fields), fields.optional("attention_bias", bool)
    rotated = read_rope_layers(fields, sizes["depth"])
    window = fields.optional("sliding_window", int, None) if fields.optional("use_sliding_window", bool) else None
    by_default = [window is not None and not rope for rope in rotated]
    windows = read_windows(fields, sizes["depth"], fields.optional("sliding_window", int, None), by_default)
    if windows is not None and window is None:
        raise fields.error("'layer_types' has windowed layers, but 'use_sliding_window' is false")
    return ModelConfig(
        family="smollm3",
        **sizes,
        rope=read_rope(fields),
        rope_layers=rotated,
        windows=windows,
        qkv_bias=bias,
        out_bias=bias,
        ff_bias=fields.optional("mlp_bias", bool),
    )


def _write(config: ModelConfig) -> Json:
    assert config.rope_layers is not None
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.ff_bias,
        "no_rope_layers": [int(rope) for rope in config.rope_layers],
        "use_sliding_window": config.windows is not None,
        "sliding_window": one_window(config),
        "layer_types": layer_types(config),
    }


SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", _read, _write, TABLE)
