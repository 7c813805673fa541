"""A decoder's weights in transformers' own model under PyTorch, which `colm bench` compares with.

PyTorch is no dependency: only a machine that has it makes the comparison.
"""

from importlib.util import find_spec
from typing import Any

import jax

from colm_jax.bench.timing import cores
from colm_jax.checkpoints.families import to_huggingface
from colm_jax.checkpoints.huggingface import to_tensors
from colm_jax.models.decoder import Decoder


def why_not(dtype: str) -> str | None:
    """Why the comparison cannot be made here; None where it can."""
    if jax.default_backend() != "cpu":
        return "PyTorch is compared on the CPU alone, and JAX runs on another device"
    if dtype != "float32":
        return f"PyTorch is compared in float32, not {dtype}"
    if find_spec("torch") is None:
        return "torch is not installed"
    return None


def torch_model(decoder: Decoder) -> Any:
    """transformers' model, float32, with copies of the decoder's weights."""
    import torch
    import transformers

    config = to_huggingface(decoder.config, "float32", bos_id=None, eos_id=None)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    weights = {name: torch.tensor(value) for name, value in to_tensors(decoder).items()}
    model.load_state_dict(weights)  # strict: every weight, and no other
    return model


def thread_counts() -> list[int]:
    """Numbers of threads that PyTorch is given: all cores; and one, which on a busy machine may be faster."""
    return sorted({1, cores()})
