"""Granite 3: Llama with four multipliers, of embeddings, attention scores, residual additions and logits."""

from colm_jax.checkpoints.families.family import TABLE, Family
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.llama import read_llama, write_llama
from colm_jax.models.config import ModelConfig

_MULTIPLIERS = {
    "embedding_multiplier": "embedding_multiplier",
    "attention_multiplier": "attention_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logit_divisor",
}


def _read(fields: Fields) -> ModelConfig:
    multipliers = {ours: fields.optional(theirs, float) for theirs, ours in _MULTIPLIERS.items()}
    return ModelConfig(family="granite", **read_llama(fields), **multipliers)


def _write(config: ModelConfig) -> Json:
    return {**write_llama(config), **{theirs: getattr(config, ours) for theirs, ours in _MULTIPLIERS.items()}}


GRANITE = Family("granite", "GraniteForCausalLM", _read, _write, TABLE)
