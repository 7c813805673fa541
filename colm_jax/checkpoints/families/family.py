"""What a family of checkpoints is: how its config.json reads and writes, and what its tensors are called.

A family is one file beside this one (docs/families.md says how to add one). `fields.py` says which fields a file may
have, `rope.py` reads and writes rotary positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.models.config import ModelConfig

_DEEPEST = 10_000  # layers


@dataclass(frozen=True)
class Stored:
    """A parameter in the checkpoint: its name ({} for the layer, then for the network of a mixture) and its layout.

    Layouts: "same"; "flat", all axes in one; "transposed", [out, in] with heads flattened into `out`; "merged",
    likewise with heads flattened into `in`.
    """

    name: str
    layout: str

    @property
    def inputs(self) -> int:
        """How many of our leading axes are the stored tensor's columns; 0: it is not transposed."""
        return {"same": 0, "flat": 0, "transposed": 1, "merged": 2}[self.layout]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one stored tensor, given one layer's (and network's) shape here."""
        if self.layout == "same":
            return ours
        if self.layout == "flat":
            return (math.prod(ours),)
        return (math.prod(ours[self.inputs :]), math.prod(ours[: self.inputs]))


@dataclass(frozen=True)
class Family:
    """A family of checkpoints."""

    model_type: str
    architecture: str  # transformers' class, written on export
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], Json]
    table: dict[str, Stored]  # path in Decoder -> where it is stored; paths a config has no use for are left out


# What Llama-like families share.

_LAYER = "model.layers.{}."
TABLE: dict[str, Stored] = {
    "embedding": Stored("model.embed_tokens.weight", "same"),
    "norm.scale": Stored("model.norm.weight", "same"),
    "head": Stored("lm_head.weight", "transposed"),
    "layers.attention_norm.scale": Stored(_LAYER + "input_layernorm.weight", "same"),
    "layers.attention.query.kernel": Stored(_LAYER + "self_attn.q_proj.weight", "transposed"),
    "layers.attention.key.kernel": Stored(_LAYER + "self_attn.k_proj.weight", "transposed"),
    "layers.attention.value.kernel": Stored(_LAYER + "self_attn.v_proj.weight", "transposed"),
    "layers.attention.out.kernel": Stored(_LAYER + "self_attn.o_proj.weight", "merged"),
    "layers.attention.query.bias": Stored(_LAYER + "self_attn.q_proj.bias", "flat"),
    "layers.attention.key.bias": Stored(_LAYER + "self_attn.k_proj.bias", "flat"),
    "layers.attention.value.bias": Stored(_LAYER + "self_attn.v_proj.bias", "flat"),
    "layers.attention.out.bias": Stored(_LAYER + "self_attn.o_proj.bias", "same"),
    "layers.attention.query_norm.scale": Stored(_LAYER + "self_attn.q_norm.weight", "same"),
    "layers.attention.key_norm.scale": Stored(_LAYER + "self_attn.k_norm.weight", "same"),
    "layers.feed_forward_norm.scale": Stored(_LAYER + "post_attention_layernorm.weight", "same"),
    "layers.feed_forward.gate.kernel": Stored(_LAYER + "mlp.gate_proj.weight", "transposed"),
    "layers.feed_forward.up.kernel": Stored(_LAYER + "mlp.up_proj.weight", "transposed"),
    "layers.feed_forward.down.kernel": Stored(_LAYER + "mlp.down_proj.weight", "transposed"),
    "layers.feed_forward.gate.bias": Stored(_LAYER + "mlp.gate_proj.bias", "same"),
    "layers.feed_forward.up.bias": Stored(_LAYER + "mlp.up_proj.bias", "same"),
    "layers.feed_forward.down.bias": Stored(_LAYER + "mlp.down_proj.bias", "same"),
}


def read_sizes(fields: Fields) -> dict[str, Any]:
    """The fields that every family names alike."""
    heads, width = fields.get("num_attention_heads", int), fields.get("hidden_size", int)
    depth = fields.get("num_hidden_layers", int)
    if not 1 <= depth <= _DEEPEST:
        raise fields.error(f"field 'num_hidden_layers' must be from 1 to {_DEEPEST}, got {depth}")
    return {
        "vocab_size": fields.get("vocab_size", int),
        "width": width,
        "depth": depth,
        "heads": heads,
        "kv_heads": fields.optional("num_key_value_heads", int, heads),
        "head_dim": fields.optional("head_dim", int, width // max(heads, 1)),  # 0 heads: refused by ModelConfig
        "ff": fields.get("intermediate_size", int),
        "context": fields.get("max_position_embeddings", int),
        "rms_eps": fields.get("rms_norm_eps", float),
        "tied": fields.optional("tie_word_embeddings", bool),
    }


def write_sizes(config: ModelConfig) -> Json:
    """The inverse of `read_sizes`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ff,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.rms_eps,
        "tie_word_embeddings": config.tied,
    }


def read_windows(fields: Fields, depth: int, window: int | None, default: list[bool]) -> tuple[int | None, ...] | None:
    """Per layer its window, by `layer_types` or, where a file has none, where `default` says so."""
    windowed = _windowed_layers(fields, depth)
    if windowed is None:
        windowed = default
    if not any(windowed):
        return None
    if window is None:
        raise fields.error("field 'sliding_window' is missing, and 'layer_types' has windowed layers")
    return tuple(window if w else None for w in windowed)


def read_uniform_windows(fields: Fields, depth: int, window: int | None) -> tuple[int | None, ...] | None:
    """The windows of a family whose layers are all alike; `layer_types` may repeat it."""
    windowed = _windowed_layers(fields, depth)
    if windowed not in (None, [window is not None] * depth):
        raise fields.error(
            f"'layer_types' and the sliding window ({window}) disagree: in model_type {fields.model_type!r} all layers "
            "are alike; remove 'layer_types'"
        )
    return None if window is None else (window,) * depth


def _windowed_layers(fields: Fields, depth: int) -> list[bool] | None:
    """Which layers have a window by `layer_types`; None where a file has none."""
    types = fields.given("layer_types", list)
    if types is None:
        return None
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.error(f"layer type {kind!r} is not supported, only 'full_attention', 'sliding_attention'")
    if len(types) != depth:
        raise fields.error(f"{len(types)} 'layer_types' for {depth} layers")
    return [kind == "sliding_attention" for kind in types]


def layer_types(config: ModelConfig) -> list[str]:
    """The inverse of `read_windows`."""
    windows = config.windows or (None,) * config.depth
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def one_window(config: ModelConfig) -> int | None:
    """The size that a family's files give all windows; None without one."""
    return next((window for window in config.windows or () if window is not None), None)
