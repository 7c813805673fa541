"""Llama models with random weights for `colm bench`."""

import jax

from colm_jax.models.config import ModelConfig
from colm_jax.models.rope_config import Rope
from colm_jax.settings.bench import CompiledBench, DecodeBench, ScoreBench, SpeculationBench, TrainBench


def dtype_of(settings: TrainBench | DecodeBench | ScoreBench | SpeculationBench) -> str:
    """Return the dtype of a benchmark; by default it depends on the device."""
    return settings.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def model_of(settings: TrainBench) -> ModelConfig:
    """Return the configuration of the trained model."""
    sizes = settings.width, settings.depth, settings.heads, settings.ff
    return _llama(settings.vocab_size, *sizes, settings.length + 1)


def scored_model(settings: ScoreBench) -> ModelConfig:
    """Return the configuration of the model that scores."""
    sizes = settings.width, settings.depth, settings.heads, settings.ff
    return _llama(settings.vocab_size, *sizes, settings.longest)


def pair_of(settings: DecodeBench | CompiledBench) -> tuple[ModelConfig, ModelConfig]:
    """Return the configurations of base and expert."""
    context = settings.length if isinstance(settings, CompiledBench) else settings.prompt_tokens + settings.new_tokens
    base = settings.base_width, settings.base_depth, settings.base_heads, settings.base_ff
    expert = settings.expert_width, settings.expert_depth, settings.expert_heads, settings.expert_ff
    return _llama(settings.vocab_size, *base, context), _llama(settings.vocab_size, *expert, context)


def alike_pair_of(settings: SpeculationBench) -> tuple[ModelConfig, ModelConfig]:
    """Return the configurations of a base and of an expert with the same layers and further ones."""
    context = settings.prompt_tokens + settings.new_tokens
    depths, sizes = (settings.base_depth, settings.expert_depth), (settings.heads, settings.ff, context)
    base, expert = (_llama(settings.vocab_size, settings.width, depth, *sizes) for depth in depths)
    return base, expert


def _llama(vocab_size: int, width: int, depth: int, heads: int, ff: int, context: int) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        ff=ff,
        context=context,
        rope=Rope(10000.0),
        rms_eps=1e-5,
        tied=False,
    )
