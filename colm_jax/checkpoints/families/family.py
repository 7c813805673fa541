"""Definition of a checkpoint family: reading and writing its config.json, and the names of its tensors.

Each family is one file in this directory (docs/families.md explains how to add one). `fields.py` validates the fields
of a config.json; `rope.py` reads and writes rotary position parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.models.config import ModelConfig

_DEEPEST = 10_000  # layers
_SLIDING = "sliding_attention"  # in `layer_types`: with a window
LAYOUTS = {"same": 0, "flat": 0, "transposed": 1, "merged": 2}  # of `Stored`: see `inputs`


@dataclass(frozen=True)
class Stored:
    """Where a parameter is in the checkpoint: the tensor's name, with {} for layer and network, and its layout.

    Layouts: "same"; "flat", all axes flattened; "transposed", [out, in] with heads flattened into `out`; "merged",
    [out, in] with heads flattened into `in`.
    """

    name: str
    layout: str
    sections: tuple[str, ...] = ()  # parameters that share the tensor, in order: rows of [out, in], else its last axis
    interleaved: bool = False  # the sections alternate, row by row (or column by column)
    stacked: bool = False  # the tensor has a leading axis for all networks of a mixture

    @property
    def inputs(self) -> int:
        """The number of the parameter's leading axes that are the stored tensor's columns; 0: not transposed."""
        return LAYOUTS[self.layout]

    @property
    def by_network(self) -> bool:
        """Whether each network of a mixture has a tensor, or a slab of a stacked tensor, of its own."""
        return self.stacked or self.name.count("{}") == 2

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the stored matrix or vector, given the parameter's shape for one layer (and network)."""
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
    table: dict[str, Stored]  # path in Decoder, layers unnumbered -> stored tensor; may have paths that are not used
    left_out: Callable[[Json, str], bool] = lambda config, name: False  # is this stored tensor no part of the model?


# Shared by Llama-like families.

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


def gate_and_up(name: str) -> dict[str, Stored]:
    """Return the entries of feed-forward kernels that share a tensor: the gate's rows, then those of `up`."""
    sections = ("feed_forward.gate.kernel", "feed_forward.up.kernel")
    return {f"layers.{path}": Stored(name, "transposed", sections) for path in sections}


def read_sizes(fields: Fields) -> dict[str, Any]:
    """Read the fields that have the same name in every family."""
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
        "head_dim": fields.optional("head_dim", int, width // max(heads, 1)),  # ModelConfig rejects 0 heads
        "ff": fields.get("intermediate_size", int),
        "context": fields.get("max_position_embeddings", int),
        "rms_eps": fields.get("rms_norm_eps", float),
        "tied": fields.optional("tie_word_embeddings", bool),
    }


def write_sizes(config: ModelConfig) -> Json:
    """Return the fields of `read_sizes`; its inverse."""
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


def read_windows(
    fields: Fields, depth: int, window: int | None, default: list[bool], kind: str = _SLIDING
) -> tuple[int | None, ...] | None:
    """Return each layer's window, by `layer_types` (`kind`: with one) or, if the file has none, by `default`."""
    windowed = _windowed_layers(fields, depth, kind)
    if windowed is None:
        windowed = default
    if not any(windowed):
        return None
    if window is None:
        field = "sliding_window" if kind == _SLIDING else "attention_chunk_size"
        raise fields.error(f"field {field!r} is missing, but 'layer_types' has windowed layers")
    return tuple(window if w else None for w in windowed)


def read_uniform_windows(fields: Fields, depth: int, window: int | None) -> tuple[int | None, ...] | None:
    """Return the windows of a family whose layers are all alike; `layer_types`, if present, must agree."""
    windowed = _windowed_layers(fields, depth)
    if windowed not in (None, [window is not None] * depth):
        raise fields.error(
            f"'layer_types' and the sliding window ({window}) disagree: in model_type {fields.model_type!r} all layers "
            "are alike; remove 'layer_types'"
        )
    return None if window is None else (window,) * depth


def read_rope_layers(fields: Fields, depth: int) -> tuple[bool, ...]:
    """Return which layers have rotary positions: `no_rope_layers` says 1 for those that do, as in transformers.

    Without that list, every `no_rope_layer_interval`-th layer has none.
    """
    listed, interval = fields.given("no_rope_layers", list), fields.optional("no_rope_layer_interval", int)
    if not listed:
        if interval < 1:
            raise fields.error(f"field 'no_rope_layer_interval' must be at least 1, got {interval}")
        return tuple((i + 1) % interval != 0 for i in range(depth))
    if len(listed) != depth or any(value not in (0, 1) for value in listed):
        raise fields.error(f"'no_rope_layers' must be {depth} values 0 or 1, one for each layer, got {listed!r:.80}")
    return tuple(bool(value) for value in listed)


def _windowed_layers(fields: Fields, depth: int, windowed: str = _SLIDING) -> list[bool] | None:
    """Return whether each layer has a window, from `layer_types`; None if the file has none."""
    types = fields.given("layer_types", list)
    if types is None:
        return None
    for kind in types:
        if kind not in ("full_attention", windowed):
            raise fields.error(
                f"'layer_types' has {kind!r:.80}, which is not supported, only 'full_attention', {windowed!r}"
            )
    if len(types) != depth:
        raise fields.error(f"'layer_types' has {len(types)} entries for {depth} layers")
    return [kind == windowed for kind in types]


def layer_types(config: ModelConfig, windowed: str = _SLIDING) -> list[str]:
    """Return `layer_types`; the inverse of `read_windows`."""
    windows = config.windows or (None,) * config.depth
    return ["full_attention" if window is None else windowed for window in windows]


def one_window(config: ModelConfig) -> int | None:
    """Return the size of the windows, which all layers share; None without windows."""
    return next((window for window in config.windows or () if window is not None), None)
