"""Conversion of a decoder to transformers' PyTorch model, the baseline of `colm bench`.

PyTorch is optional: without it the comparison is left out.
"""

from importlib.util import find_spec
from typing import Any

import jax

from colm_jax.bench.timing import cores
from colm_jax.checkpoints.families import to_huggingface
from colm_jax.checkpoints.huggingface import to_tensors
from colm_jax.models.decoder import Decoder


def why_not(dtype: str) -> str | None:
    """Return why the comparison is not possible here; None if it is."""
    if jax.default_backend() != "cpu":
        return "PyTorch is compared on the CPU only, and JAX runs on another device"
    if dtype != "float32":
        return f"PyTorch is compared in float32, not {dtype}"
    if find_spec("torch") is None:
        return "torch is not installed"
    return None


def torch_model(decoder: Decoder) -> Any:
    """Return transformers' model, float32, with copies of the decoder's weights."""
    import torch
    import transformers

    config = to_huggingface(decoder.config, "float32", bos_id=None, eos_id=None)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    weights = {name: torch.tensor(value) for name, value in to_tensors(decoder).items()}
    if decoder.config.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)  # strict: exactly the model's weights
    return model


def thread_counts() -> list[int]:
    """Return the numbers of PyTorch threads to try: all cores, and one, which may be faster on a busy machine."""
    return sorted({1, cores()})
