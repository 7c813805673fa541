"""What a family of checkpoints is: how its config.json reads and writes, and what its tensors are called.

A family is one file beside this one (docs/families.md says how to add one). Reading is strict: a field that no one
asked for is an error, since it could change what the model computes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from colm_jax.errors import UserError
from colm_jax.models.config import Bands, ModelConfig, Rope

Json = dict[str, Any]

# Fields that change nothing in the numbers a model computes: names, ids, training and framework settings.
_HARMLESS = frozenset(
    """_attn_implementation_autoset _name_or_path architectures attention_dropout bos_token_id cache_implementation
    chunk_size_feed_forward cls_token_id dtype eos_token_id finetuning_task id2label initializer_range
    is_encoder_decoder is_llama_config label2id mask_token_id max_length max_sequence_length model_type
    output_attentions output_hidden_states output_router_logits pad_token_id prefix pretraining_tp problem_type
    return_dict router_aux_loss_coef router_jitter_noise sep_token_id task_specific_params tokenizer_class
    torch_dtype torchscript transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16
    use_cache""".split()
)
_REFUSED = {
    "auto_map": "the checkpoint brings its own code, which is never run",
    "quantization_config": "the weights are quantised already; name the unquantised checkpoint "
    "(--expert_dtype int8 quantises it here)",
}
_LARGEST = 2**31 - 1  # of a whole number
_DEEPEST = 10_000  # layers
_REQUIRED = object()


class Fields:
    """A config.json while it is read: which fields were asked for, and errors that name file, field and value."""

    def __init__(self, config: Json, source: str):
        self.config, self.source, self._known = config, source, set(_HARMLESS)

    def error(self, text: str) -> UserError:
        """An error that names the file."""
        return UserError(f"{self.source}: {text}")

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
        """The field's value; `default` where it is missing or null.

        Raises:
          UserError: missing without a default, or of another type.
        """
        self._known.add(key)
        value = self.config.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(f"field {key!r} is missing")
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(f"field {key!r} has a wrong type: {value!r:.80}")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise self.error(f"field {key!r} is out of range: {value!r:.80}")
        return value

    def absent(self, key: str) -> bool:
        """Whether the file leaves the field out (null is a value)."""
        return key not in self.config

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A field that holds a number, as a float."""
        value = self.get(key, (int, float), default)
        return float(value) if isinstance(value, int | float) else value

    def only(self, key: str, *allowed: Any) -> None:
        """A field of which only these values are implemented; it may be missing."""
        self._known.add(key)
        if key in self.config and self.config[key] not in allowed:
            raise self.error(f"{key}={self.config[key]!r} is not supported, only {allowed[0]!r}")

    def done(self) -> None:
        """Raises UserError for a field that was not asked for."""
        for key, value in self.config.items():
            if key in _REFUSED and value:
                raise self.error(f"has {key!r}: {_REFUSED[key]}")
            if key not in self._known and key not in _REFUSED:
                raise self.error(f"unknown field {key!r} ({value!r:.80}); it could change what the model computes")

    def rope(self, default_theta: float | None = None) -> Rope:
        """Rotary positions, in transformers 5's spelling (`rope_parameters`) or the older one.

        Args:
          default_theta: what the family's files mean where they leave theta out; None: they never do.
        """
        theta = self.get("rope_theta", (int, float), default_theta)
        found = self.get("rope_parameters", dict, None) or self.get("rope_scaling", dict, None) or {}
        self.get("rope_scaling", dict, None)
        return self.rope_of(found, theta)

    def rope_of(self, found: Json, theta: float | None) -> Rope:
        """One rope description; `theta` where it names none."""
        kind = found.get("rope_type", found.get("type", "default"))
        if kind not in ("default", "linear", "llama3"):
            raise self.error(f"rope type {kind!r} is not supported, only 'default', 'linear' and 'llama3'")
        wanted = {"default": (), "linear": ("factor",), "llama3": ("factor", *_BANDS)}[kind]
        for key in found:
            if key not in (*wanted, "rope_type", "type", "rope_theta"):
                raise self.error(f"unknown field {key!r} of the rope parameters ({found[key]!r})")
        numbers: Json = {"rope_theta": found.get("rope_theta", theta), **{key: found.get(key) for key in wanted}}
        for key, value in numbers.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise self.error(f"field {key!r} is missing or no number: {value!r}")
        bands = None
        if kind == "llama3":
            bands = Bands(
                low=float(numbers["low_freq_factor"]),
                high=float(numbers["high_freq_factor"]),
                original_context=int(numbers["original_max_position_embeddings"]),
            )
        return Rope(float(numbers["rope_theta"]), float(numbers.get("factor", 1.0)), bands)


_BANDS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


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


def read_sizes(fields: Fields, *, tied: bool) -> dict[str, Any]:
    """The fields that every family names alike; `tied` is what its files mean where they leave it out."""
    heads, width = fields.get("num_attention_heads", int), fields.get("hidden_size", int)
    depth = fields.get("num_hidden_layers", int)
    if not 1 <= depth <= _DEEPEST:
        raise fields.error(f"field 'num_hidden_layers' must be from 1 to {_DEEPEST}, got {depth}")
    return {
        "vocab_size": fields.get("vocab_size", int),
        "width": width,
        "depth": depth,
        "heads": heads,
        "kv_heads": fields.get("num_key_value_heads", int, heads),
        "head_dim": fields.get("head_dim", int, width // max(heads, 1)),  # 0 heads: refused by ModelConfig
        "ff": fields.get("intermediate_size", int),
        "context": fields.get("max_position_embeddings", int),
        "rms_eps": fields.number("rms_norm_eps"),
        "tied": fields.get("tie_word_embeddings", bool, tied),
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


def write_rope(rope: Rope) -> Json:
    """One rope description, as transformers 5 writes it."""
    if rope.bands is not None:
        values = (rope.bands.low, rope.bands.high, rope.bands.original_context)
        return {"rope_type": "llama3", "rope_theta": rope.theta, "factor": rope.factor, **dict(zip(_BANDS, values))}
    if rope.factor != 1.0:
        return {"rope_type": "linear", "rope_theta": rope.theta, "factor": rope.factor}
    return {"rope_type": "default", "rope_theta": rope.theta}


def write_both_ropes(rope: Rope) -> Json:
    """The rope in transformers 5's spelling and, for older readers, in theirs."""
    new = write_rope(rope)
    scaling = None if new["rope_type"] == "default" else {k: v for k, v in new.items() if k != "rope_theta"}
    return {"rope_parameters": new, "rope_theta": rope.theta, "rope_scaling": scaling}


def read_windows(fields: Fields, depth: int, window: int | None, default: list[bool]) -> tuple[int | None, ...] | None:
    """Per layer its window, by `layer_types` or, where a file has none, where `default` says so."""
    types = fields.get("layer_types", list, None)
    if types is None:
        windowed = default
    else:
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise fields.error(f"layer type {kind!r} is not supported, only 'full_attention', 'sliding_attention'")
        windowed = [kind == "sliding_attention" for kind in types]
        if len(windowed) != depth:
            raise fields.error(f"{len(windowed)} 'layer_types' for {depth} layers")
    if not any(windowed):
        return None
    if window is None:
        raise fields.error("field 'sliding_window' is missing, and 'layer_types' has windowed layers")
    return tuple(window if w else None for w in windowed)


def layer_types(config: ModelConfig) -> list[str]:
    """The inverse of `read_windows`."""
    windows = config.windows or (None,) * config.depth
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def one_window(config: ModelConfig) -> int | None:
    """The size that a family's files give all windows; None without one."""
    return next((window for window in config.windows or () if window is not None), None)
