"""What a decoder is: every number that the network needs, read from a Hugging Face `config.json`, none assumed."""

from dataclasses import dataclass
from typing import Any

from colm_jax.errors import UserError

# Fields that change nothing in the numbers a frozen model computes: names, ids, training-time and framework settings.
_IGNORED = frozenset(
    """_name_or_path architectures attention_dropout bos_token_id dtype eos_token_id initializer_range model_type
    pad_token_id torch_dtype transformers_version use_cache pretraining_tp id2label label2id output_attentions
    output_hidden_states return_dict chunk_size_feed_forward is_encoder_decoder problem_type""".split()
)
# Fields that would change the numbers: only these values are implemented.
_FIXED: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_READ = frozenset(
    """vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size
    rms_norm_eps max_position_embeddings tie_word_embeddings rope_theta rope_scaling rope_parameters""".split()
)


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-family decoder. Field letters are those used in array shapes throughout."""

    vocab_size: int  # V
    width: int  # D
    depth: int  # number of layers
    heads: int  # H
    kv_heads: int  # K, H divisible by K
    head_dim: int
    ff: int  # F
    context: int  # longest text, in tokens
    rope_theta: float
    rms_eps: float
    tied: bool  # the head is the embedding table

    def __post_init__(self):
        """Rejects sizes that no network can have."""
        for name in ("vocab_size", "width", "depth", "heads", "kv_heads", "head_dim", "ff", "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"model config: {name} must be a positive whole number, got {value!r}")
        for name in ("rope_theta", "rms_eps"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UserError(f"model config: {name} must be a positive number, got {value!r}")
        if self.heads % self.kv_heads:
            raise UserError(f"model config: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise UserError(f"model config: head_dim must be even for RoPE, got {self.head_dim}")

    @classmethod
    def from_huggingface(cls, config: dict[str, Any], source: str) -> "ModelConfig":
        """Reads a `config.json`; `source` names it in errors.

        Raises:
          UserError: another family, a missing field, a field whose meaning is not implemented, or a wrong type.
        """
        if config.get("model_type") != "llama":
            raise UserError(f"{source}: model_type is {config.get('model_type')!r}; this version reads 'llama'")
        for key, value in config.items():
            if key in _FIXED and value != _FIXED[key]:
                raise UserError(f"{source}: {key}={value!r} is not supported, only {_FIXED[key]!r}")
            if key not in _IGNORED and key not in _READ and key not in _FIXED:
                raise UserError(f"{source}: unknown field {key!r} ({value!r}); it could change what the model computes")

        def need(key: str, kind: type | tuple[type, ...]):
            if key not in config:
                raise UserError(f"{source}: field {key!r} is missing")
            value = config[key]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise UserError(f"{source}: field {key!r} has a wrong type: {value!r}")
            return value

        theta = config.get("rope_theta")
        for field in ("rope_scaling", "rope_parameters"):
            rope = config.get(field) or {}
            kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
            if kind != "default":
                raise UserError(f"{source}: rope type {kind!r} in {field!r} is not supported, only 'default'")
            unknown = sorted(set(rope) - {"rope_type", "type", "rope_theta"})
            if unknown:
                raise UserError(f"{source}: unknown field {unknown[0]!r} in {field!r} ({rope[unknown[0]]!r})")
            theta = rope.get("rope_theta", theta)
        if not isinstance(theta, int | float) or isinstance(theta, bool):
            raise UserError(f"{source}: field 'rope_theta' is missing or no number: {theta!r}")
        heads, width = need("num_attention_heads", int), need("hidden_size", int)
        kv_heads, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
        return cls(
            vocab_size=need("vocab_size", int),
            width=width,
            depth=need("num_hidden_layers", int),
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=width // max(heads, 1) if head_dim is None else head_dim,  # 0 heads: refused by the constructor
            ff=need("intermediate_size", int),
            context=need("max_position_embeddings", int),
            rope_theta=float(theta),
            rms_eps=float(need("rms_norm_eps", (float, int))),
            tied=need("tie_word_embeddings", bool) if "tie_word_embeddings" in config else False,
        )

    def to_huggingface(self, dtype: str, bos_id: int | None, eos_id: int | None) -> dict[str, Any]:
        """The `config.json` that transformers reads for this model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ff,
            "max_position_embeddings": self.context,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_eps,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
            "dtype": dtype,
        }
