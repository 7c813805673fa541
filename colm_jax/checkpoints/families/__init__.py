"""Supported checkpoint families, by their Hugging Face model_type. `register_family` adds one."""

from typing import Any

from colm_jax.checkpoints.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from colm_jax.checkpoints.families.family import LAYOUTS, TABLE, Family, Stored
from colm_jax.checkpoints.families.fields import Fields
from colm_jax.checkpoints.families.gemma import GEMMA2, GEMMA3
from colm_jax.checkpoints.families.glm import GLM4
from colm_jax.checkpoints.families.gpt_oss import GPT_OSS
from colm_jax.checkpoints.families.granite import GRANITE
from colm_jax.checkpoints.families.llama import LLAMA
from colm_jax.checkpoints.families.llama4 import LLAMA4
from colm_jax.checkpoints.families.ministral import MINISTRAL, MINISTRAL3
from colm_jax.checkpoints.families.mistral import MISTRAL, MIXTRAL
from colm_jax.checkpoints.families.multimodal import MULTIMODAL, text_fields, text_tensor
from colm_jax.checkpoints.families.olmo import OLMO2, OLMO3
from colm_jax.checkpoints.families.phi import PHI3
from colm_jax.checkpoints.families.qwen import QWEN2, QWEN3
from colm_jax.checkpoints.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from colm_jax.checkpoints.families.reference import is_known
from colm_jax.checkpoints.families.smollm import SMOLLM3
from colm_jax.errors import UserError
from colm_jax.models.config import ModelConfig

__all__ = [
    "FAMILIES",
    "TABLE",
    "Family",
    "Fields",
    "Stored",
    "from_huggingface",
    "model_tensor",
    "register_family",
    "to_huggingface",
]

_LLAMA_LIKE = (LLAMA, MISTRAL, MINISTRAL, MINISTRAL3, PHI3, GRANITE, SMOLLM3, GLM4)
_OTHERS = (QWEN2, QWEN3, GEMMA2, GEMMA3, OLMO2, OLMO3)
_MIXTURES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, GPT_OSS, LLAMA4, DEEPSEEK_V2, DEEPSEEK_V3)
FAMILIES: dict[str, Family] = {family.model_type: family for family in (*_LLAMA_LIKE, *_OTHERS, *_MIXTURES)}


def register_family(family: Family) -> None:
    """Add a family, whose checkpoints are then read and written like those of the others.

    Args:
      family: how its config.json is read and written, and where its parameters are stored. `models.ModelConfig` must be
        able to describe it. A config.json's default values are those of transformers' configuration class, so
        transformers must know the model_type; `transformers.AutoConfig.register` adds one.

    Raises:
      UserError: the model_type is taken, or unknown to transformers; an entry of the table that no tensor can have.

    Example:
      docs/extending.md adds a whole family. A name is registered once:

      >>> from colm_jax import register_family
      >>> from colm_jax.checkpoints.families import FAMILIES
      >>> register_family(FAMILIES["llama"])
      Traceback (most recent call last):
          ...
      colm_jax.errors.UserError: family 'llama' exists already
    """
    name = family.model_type
    if name in FAMILIES or name in MULTIMODAL:
        raise UserError(f"family {name!r} exists already")
    if not is_known(name):
        raise UserError(
            f"family {name!r:.80}: transformers knows no such model_type; add it with transformers.AutoConfig.register"
        )
    for path, stored in family.table.items():
        if stored.layout not in LAYOUTS:
            raise UserError(
                f"family {name!r}, {path}: layout must be one of {', '.join(LAYOUTS)}, got {stored.layout!r}"
            )
        if path.startswith("layers.") and "{}" not in stored.name:
            raise UserError(f"family {name!r}, {path}: {stored.name!r} has no {{}} for the number of the layer")
    FAMILIES[name] = family


def from_huggingface(config: dict[str, Any], source: str) -> ModelConfig:
    """Read a `config.json`; `source` names it in errors.

    Raises:
      UserError: an unsupported family, field or value, a missing field, or a wrong type.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{source}: field 'model_type' is missing or no text: {model_type!r:.80}")
    if model_type in MULTIMODAL:
        fields = text_fields(config, source)
    elif model_type in FAMILIES:
        fields = Fields(config, source)
    else:
        known = ", ".join((*FAMILIES, *MULTIMODAL))
        raise UserError(f"{source}: model_type {model_type!r:.80} is not supported, only {known}")
    family = FAMILIES[fields.model_type]
    try:
        result = family.read(fields)
    except UserError as error:
        raise error if str(error).startswith(source) else fields.error(str(error)) from None
    fields.done()
    return result


def model_tensor(config: dict[str, Any], name: str) -> str | None:
    """Return the name of a stored tensor in the family's table; None if the tensor is no part of the (text) model.

    Args:
      config: a `config.json` that `from_huggingface` reads.
      name: the tensor's name in the checkpoint.
    """
    model_type = config["model_type"]
    if model_type in MULTIMODAL:
        return text_tensor(name)
    return None if FAMILIES[model_type].left_out(config, name) else name


def to_huggingface(
    config: ModelConfig, dtype: str, bos_id: int | None, eos_id: int | list[int] | None
) -> dict[str, Any]:
    """Return the `config.json` that transformers reads for this model."""
    family = FAMILIES[config.family]
    head = {"architectures": [family.architecture], "model_type": family.model_type, "pad_token_id": None}
    return {**head, **family.write(config), "bos_token_id": bos_id, "eos_token_id": eos_id, "dtype": dtype}
