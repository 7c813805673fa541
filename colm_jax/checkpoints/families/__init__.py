"""Supported checkpoint families, by their Hugging Face model_type."""

from typing import Any

from colm_jax.checkpoints.families.family import Family, Stored
from colm_jax.checkpoints.families.fields import Fields
from colm_jax.checkpoints.families.gemma import GEMMA2, GEMMA3
from colm_jax.checkpoints.families.llama import LLAMA
from colm_jax.checkpoints.families.mistral import MISTRAL, MIXTRAL
from colm_jax.checkpoints.families.qwen import QWEN2, QWEN3
from colm_jax.errors import UserError
from colm_jax.models.config import ModelConfig

__all__ = ["FAMILIES", "Family", "Stored", "from_huggingface", "to_huggingface"]

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)
}


def from_huggingface(config: dict[str, Any], source: str) -> ModelConfig:
    """Read a `config.json`; `source` names it in errors.

    Raises:
      UserError: an unsupported family, field or value, a missing field, or a wrong type.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None and config.get("model_type") == "gemma3":
        raise UserError(f"{source}: model_type 'gemma3' is the multimodal Gemma 3; only its text models are read")
    if family is None:
        raise UserError(
            f"{source}: model_type {config.get('model_type')!r} is not supported, only {', '.join(FAMILIES)}"
        )
    fields = Fields(config, source)
    try:
        result = family.read(fields)
    except UserError as error:
        raise error if str(error).startswith(source) else fields.error(str(error)) from None
    fields.done()
    return result


def to_huggingface(
    config: ModelConfig, dtype: str, bos_id: int | None, eos_id: int | list[int] | None
) -> dict[str, Any]:
    """Return the `config.json` that transformers reads for this model."""
    family = FAMILIES[config.family]
    head = {"architectures": [family.architecture], "model_type": family.model_type}
    return {**head, **family.write(config), "bos_token_id": bos_id, "eos_token_id": eos_id, "dtype": dtype}
