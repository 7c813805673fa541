"""Phi-3, Phi-3.5 and Phi-4: fused kernels, rotary positions on part of a head (Phi-4 mini), longrope.

The mixture Phi-3.5-MoE is another family, which is not supported.
"""

from colm_jax.checkpoints.families.family import (
    TABLE,
    Family,
    Stored,
    gate_and_up,
    one_window,
    read_sizes,
    read_uniform_windows,
    write_sizes,
)
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.rope import RopeRules, read_rope, write_both_ropes
from colm_jax.models.config import ModelConfig

# Phi-3 once called longrope "su" and "yarn".
_ROPE = RopeRules(
    kinds={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}, partial=True
)


def _read(fields: Fields) -> ModelConfig:
    fields.only("hidden_act", "silu")
    fields.published_code("Phi3ForCausalLM")
    sizes, window = read_sizes(fields), fields.optional("sliding_window", int, None)
    fields.given("original_max_position_embeddings", int)  # changes nothing without longrope, which reads it
    return ModelConfig(
        family="phi3",
        **sizes,
        rope=read_rope(fields, _ROPE),
        windows=read_uniform_windows(fields, sizes["depth"], window),
    )


def _write(config: ModelConfig) -> Json:
    return {
        **write_sizes(config),
        **write_both_ropes(config.rope, config.head_dim),
        "hidden_act": "silu",
        "sliding_window": one_window(config),
    }


_ATTENTION = "model.layers.{}.self_attn."
_READS = ("attention.query.kernel", "attention.key.kernel", "attention.value.kernel")
PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    _read,
    _write,
    {
        **TABLE,
        **{f"layers.{path}": Stored(_ATTENTION + "qkv_proj.weight", "transposed", _READS) for path in _READS},
        **gate_and_up("model.layers.{}.mlp.gate_up_proj.weight"),
    },
)
