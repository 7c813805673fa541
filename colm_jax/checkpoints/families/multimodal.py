"""Multimodal checkpoints whose text model is a family of its own: config.json nested, tensors with a prefix.

Only the text model is read, not the vision tower and the projector, and it is written as a text model of its own.
"""

from dataclasses import dataclass

from colm_jax.checkpoints.families.fields import REFUSED, Fields, Json
from colm_jax.checkpoints.families.reference import default_of

_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
_LEFT_OUT = ("vision_tower.", "vision_model.", "multi_modal_projector.")


@dataclass(frozen=True)
class Multimodal:
    """A multimodal model_type."""

    model_type: str
    text_types: tuple[str, ...]  # model types that its text model may have; the first where config.json has none


MULTIMODAL = {
    wrapper.model_type: wrapper
    for wrapper in (
        Multimodal("gemma3", ("gemma3_text",)),
        Multimodal("mistral3", ("mistral", "ministral3")),
        Multimodal("llama4", ("llama4_text",)),
    )
}


def text_fields(config: Json, source: str) -> Fields:
    """Return the fields of the text model within a multimodal config.json.

    Raises:
      UserError: no text model, one of another family, or a field that must not be set.
    """
    wrapper = MULTIMODAL[config["model_type"]]
    outer = Fields(config, source)
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        raise outer.error(f"field 'text_config' of the multimodal {wrapper.model_type!r} is missing or no object")
    model_type = inner.get("model_type", wrapper.text_types[0])
    if model_type not in wrapper.text_types:
        raise outer.error(
            f"the text model of {wrapper.model_type!r} has model_type {model_type!r:.80}; only "
            f"{', '.join(wrapper.text_types)} is supported"
        )
    # The outer model owns the head, and decides whether it is the embedding. Where no model says it, the text model's
    # default holds: Mistral Small 3.1 stores a head, although transformers' default for the outer model is tied.
    key = "tie_word_embeddings"
    tied = config.get(key, inner.get(key, default_of(model_type, key)))
    refused = {key: config[key] for key in REFUSED if key in config and key != "text_config"}
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config and key not in inner}
    merged = {**refused, **ids, **inner, "model_type": model_type, "tie_word_embeddings": tied}
    return Fields(merged, f"{source} (text_config)", sizes_required=False)


def text_tensor(name: str) -> str | None:
    """Return the name that a tensor of a multimodal checkpoint has in its text model; None if it is not part of it."""
    if name.removeprefix("model.").startswith(_LEFT_OUT):
        return None
    for prefix, ours in _PREFIXES.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name
