"""Validated access to a config.json: typed values, defaults, and the fields that no family reads.

- A field that a family reads must have the right type. Sizes and eps are required; any other missing field has the
  default of transformers' configuration class for this model_type.
- A field that no family reads is accepted if that class does not declare it or if it has the class's default, since it
  changes nothing. The fields of CHANGES_NOTHING are accepted with any value.
- Every other field is an error: transformers uses it, and it is not implemented here. The fields of REFUSED, which no
  class declares but transformers' shared code reads, are errors too.
"""

from typing import Any

from colm_jax.checkpoints.families.reference import MISSING, default_of, effect_of, reference_class
from colm_jax.errors import UserError
from colm_jax.text.special import token_ids

Json = dict[str, Any]

# Fields that transformers declares and that change no log-probability.
CHANGES_NOTHING = frozenset(
    # names and versions
    """_name_or_path name_or_path _commit_hash architectures model_type tokenizer_class transformers_version """
    # token ids: end-of-text ids are read with the tokenizer, padding is masked
    """bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id """
    # classifier heads and old task settings
    """finetuning_task id2label label2id num_labels problem_type task_specific_params prefix """
    # outputs and caches of PyTorch modules
    """output_attentions output_hidden_states output_router_logits return_dict use_return_dict torchscript use_cache """
    """tie_last_hidden_states cache_implementation """
    # how the weights are stored: each tensor has its own type, and quantised ones are checked when tensors are matched
    """dtype torch_dtype use_bfloat16 quantization_config """
    # the choice among equivalent kernels
    """_attn_implementation attn_implementation _attn_implementation_autoset """
    """_experts_implementation experts_implementation pretraining_tp """
    # hyperparameters of the published model's training
    """attention_dropout resid_pdrop embd_pdrop gradient_checkpointing initializer_range router_aux_loss_coef """
    """router_jitter_noise """
    # sampling parameters in old files
    """max_length""".split()
)

_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
# Fields that must not be set: the values that mean "not set", and the reason.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_map": (_NOTHING, "the checkpoint has its own code, which is never run"),
    "compression_config": (_NOTHING, "the weights are already quantised; use the unquantised checkpoint"),
    "transformers_weights": (_NOTHING, "it names another weights file; rename that file to model.safetensors"),
    "per_layer_config": (_NOTHING, "layers that differ in their sizes are not supported"),
    "pruned_heads": (_NOTHING, "pruned heads are not supported"),
    "kv_sharing_modes": (_NOTHING, "layers that share a KV cache are not supported"),
    "text_config": (_NOTHING, "nested configurations (multimodal models) are not supported"),
    "decoder": (_NOTHING, "nested configurations (encoder-decoder models) are not supported"),
    "generator": (_NOTHING, "nested configurations are not supported"),
    "is_causal": ((True,), "only causal attention is supported"),
    "add_cross_attention": (_NOTHING, "cross-attention is not supported"),
    "cross_attention_hidden_size": (_NOTHING, "cross-attention is not supported"),
    "attention_chunk_size": ((None,), "chunked attention is not supported"),
    "partial_rotary_factor": ((None, 1.0), "rotary positions on part of the head dimension are not supported"),
    # in families without windows transformers' attention ignores it, but its KV cache does not
    "sliding_window": ((None,), "models of this model_type have no sliding window; remove the field"),
}
LARGEST = 2**31 - 1  # largest whole number of a field
_REQUIRED = object()


class Fields:
    """Typed access to a config.json; records which fields are read. Errors name file, field and value."""

    def __init__(self, config: Json, source: str, sizes_required: bool = True):
        self.config, self.source, self.model_type = config, source, config["model_type"]
        self.sizes_required = sizes_required  # files of multimodal models leave out what has the class's default
        self.read: set[str] = set()

    def error(self, text: str) -> UserError:
        """Return an error that names the file; the caller raises it."""
        return UserError(f"{self.source}: {text}")

    def get(self, key: str, kind: type) -> Any:
        """Return the value of a required field; kind float accepts any number and returns a float.

        Raises:
          UserError: missing, null, or of another type.
        """
        if not self.sizes_required:
            return self.optional(key, kind)
        value = self.given(key, kind)
        if value is None:
            raise self.error(f"field {key!r} is missing")
        return value

    def given(self, key: str, kind: type) -> Any:
        """Return the value of a field; None if it is missing or null."""
        self.read.add(key)
        value = self.config.get(key)
        return None if value is None else self._checked(key, value, kind)

    def optional(self, key: str, kind: type, nothing: Any = _REQUIRED) -> Any:
        """Return the value of an optional field; if it is missing, the default of transformers' class.

        Args:
          key: the field.
          kind: the type of its value.
          nothing: the value for null, in the file or as the default; without it null is an error.
        """
        value = self.given(key, kind)
        if value is None and key not in self.config:
            value = default_of(self.model_type, key)
            value = None if value is MISSING else value
        if value is not None:
            return value
        if nothing is _REQUIRED:
            raise self.error(f"field {key!r} is {'null' if key in self.config else 'missing'}")
        return nothing

    def _checked(self, key: str, value: Any, kind: type[Any]) -> Any:
        kinds = (int, float) if kind is float else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"field {key!r} has a wrong type: {value!r:.80}")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise self.error(f"field {key!r} is out of range: {value!r:.80}")
        return float(value) if isinstance(value, int) and kind is float else value

    def only(self, key: str, *allowed: Any) -> None:
        """Check a field of which only these values are supported; it may be missing."""
        self.read.add(key)
        if key in self.config and self.config[key] not in allowed:
            raise self.error(f"{key}={self.config[key]!r:.80} is not supported, only {allowed[0]!r}")

    def published_code(self, architecture: str) -> None:
        """Accept an `auto_map` that names transformers' own class: code from before transformers had the family."""
        classes = self.config.get("auto_map")
        named = classes.get("AutoModelForCausalLM") if isinstance(classes, dict) else None
        if isinstance(named, str) and named.rpartition(".")[2] == architecture:
            self.read.add("auto_map")

    def done(self) -> None:
        """Check the fields that were not read.

        Raises:
          UserError: a field that could change the model's output, or invalid token ids.
        """
        for key in ("bos_token_id", "eos_token_id"):
            token_ids(self.config, key, self.source)
        for key, value in self.config.items():
            if key in self.read:
                continue
            if key in REFUSED:
                neutral, reason = REFUSED[key]
                if not any(value is other or value == other for other in neutral):
                    raise self.error(f"field {key!r} is set ({value!r:.80}): {reason}")
            elif key not in CHANGES_NOTHING:
                self._check_unread(key, value)

    def _check_unread(self, key: str, value: Any) -> None:
        reference = reference_class(self.model_type)
        name, other = reference.__name__, reference.attribute_map.get(key)
        if other is not None:  # two names of one attribute
            if value == self.config.get(other):
                return
            raise self.error(
                f"{key!r} ({value!r:.80}) and {other!r} ({self.config.get(other)!r:.80}) disagree, and transformers' "
                f"{name} treats them as one field; remove the wrong one"
            )
        try:
            effect = effect_of(self.model_type, key, value)
        except ValueError as error:
            raise self.error(f"field {key!r} is {value!r:.80}, which transformers' {name} rejects: {error}") from None
        if effect is None:
            return
        default = f"its default is {effect[key]!r:.80}" if key in effect else f"it changes {', '.join(effect)}"
        raise self.error(
            f"field {key!r} is {value!r:.80}; transformers' {name} uses it ({default}), and other values are not "
            "supported: remove it if the model does not need it"
        )
