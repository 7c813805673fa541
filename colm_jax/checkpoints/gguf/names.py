"""The Hugging Face name of each tensor of a GGUF file, and which conversion to undo; by architecture.

Facts of llama.cpp's converters: Llama and the architectures made from it store query and key as rotary pairs; Gemma's
norms are stored with 1 added; the networks of a mixture are stacked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colm_jax.checkpoints.gguf.header import Header, Stored
from colm_jax.checkpoints.gguf.stacks import Stack, gpt_oss_stacks
from colm_jax.checkpoints.gguf.tensors import GGUFTensor
from colm_jax.errors import UserError

_GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_DENSE = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LAYER = {**_ATTENTION, **_DENSE, "ffn_norm": "post_attention_layernorm"}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA2 = {**_LAYER, **_POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
_MIXTURE = {
    **_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
# What the configuration holds.
_READ_ELSEWHERE = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
_GPT_OSS_NETWORKS = re.compile(r"blk\.(\d{1,6})\.ffn_((?:gate|up|down)_exps\.(?:weight|bias))")
_NAME = re.compile(r"blk\.(\d{1,6})\.([a-z_]+?)(?:\.(\d{1,6}))?\.(weight|bias)")


@dataclass(frozen=True)
class Names:
    """The tensors of an architecture."""

    layer: Mapping[str, str]  # a layer's, {} for the number of a network
    paired: bool = False  # query and key are stored as rotary pairs
    shifted_norms: bool = False  # norms are stored with 1 added


_ARCHITECTURES = {
    "llama": Names({**_LAYER, **_MIXTRAL}, paired=True),
    "granite": Names(_LAYER, paired=True),
    "smollm3": Names(_LAYER, paired=True),
    "qwen2": Names(_LAYER),
    "qwen3": Names({**_LAYER, **_QK_NORM}),
    "qwen2moe": Names(
        {
            **_MIXTURE,
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
            "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
        }
    ),
    "qwen3moe": Names({**_MIXTURE, **_QK_NORM}),
    "gemma2": Names(_GEMMA2, shifted_norms=True),
    "gemma3": Names({**_GEMMA2, **_QK_NORM}, shifted_norms=True),
    "phi3": Names({**_LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "glm4": Names(
        {
            **_LAYER,
            "ffn_up": "mlp.gate_up_proj",
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        }
    ),
    "gpt-oss": Names(
        {
            **_ATTENTION,
            "attn_sinks": "self_attn.sinks",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.router",
        }
    ),
    "olmo2": Names({**_ATTENTION, **_DENSE, **_QK_NORM, **_POST_NORMS}),
}
_OLD_MIXTRAL = {"ffn_gate": "ffn_gate_exps", "ffn_up": "ffn_up_exps", "ffn_down": "ffn_down_exps"}  # a tensor a network


def to_tensors(header: Header, config: Mapping[str, Any]) -> list[GGUFTensor | Stack]:
    """Return every tensor of a file under its Hugging Face name.

    Args:
      header: of the file.
      config: its config.json.

    Raises:
      UserError: a tensor that the architecture does not have, or whose shape does not fit.
    """
    architecture = str(header.metadata["general.architecture"])
    found: list[GGUFTensor | Stack] = []
    for tensor in header.tensors.values():
        stacked = _GPT_OSS_NETWORKS.fullmatch(tensor.name) if architecture == "gpt-oss" else None
        if stacked is not None:
            found += gpt_oss_stacks(header, stacked[1]) if stacked[2] == "down_exps.weight" else []
        elif tensor.name not in _READ_ELSEWHERE:
            found += _converted(header, tensor, _ARCHITECTURES[architecture], config)
    return found


def _converted(header: Header, tensor: Stored, names: Names, config: Mapping[str, Any]) -> list[GGUFTensor]:
    """Return a stored tensor under its name; of stacked networks, one for each."""
    stem, _, kind = tensor.name.rpartition(".")
    if stem in _GLOBAL and kind == "weight":
        shift = float(names.shifted_norms and stem == "output_norm")
        return [GGUFTensor(f"{_GLOBAL[stem]}.{kind}", tensor, tensor.shape, shift=shift)]
    parsed = _NAME.fullmatch(tensor.name)
    if parsed is None:
        raise _unknown(header, tensor)
    layer, stem, network, kind = parsed.groups()
    if network is not None:
        stem = _OLD_MIXTRAL.get(stem, "")
    if stem not in names.layer:
        raise _unknown(header, tensor)
    name = f"model.layers.{layer}.{names.layer[stem]}.{kind}"
    if stem == "attn_sinks":
        name = name.removesuffix(".weight")
    if network is not None:
        return [GGUFTensor(name.format(network), tensor, tensor.shape)]
    if "{}" in name:
        networks = config.get("num_experts", config.get("num_local_experts"))
        if len(tensor.shape) != 3 or tensor.shape[0] != networks:
            raise header.error(
                f"tensor {tensor.name!r} has shape {list(tensor.shape)}, expected three axes, the first of {networks}"
            )
        whole = GGUFTensor(name, tensor, tensor.shape)
        return [whole.slab(i).named(name.format(i)) for i in range(tensor.shape[0])]
    if len(tensor.shape) > 2:
        raise header.error(f"tensor {tensor.name!r} has shape {list(tensor.shape)}, expected at most two axes")
    if stem == "ffn_gate_inp_shexp" and len(tensor.shape) == 1:
        return [GGUFTensor(name, tensor, (1, *tensor.shape))]
    heads = None
    if names.paired and stem in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if stem == "attn_q" else "num_key_value_heads"]
        if not heads or tensor.shape[0] % (2 * heads):
            raise header.error(
                f"tensor {tensor.name!r} has shape {list(tensor.shape)}, which {heads} heads do not divide"
            )
    return [GGUFTensor(name, tensor, tensor.shape, heads=heads, shift=float(names.shifted_norms and "norm" in stem))]


def _unknown(header: Header, tensor: Stored) -> UserError:
    architecture = header.metadata["general.architecture"]
    return header.error(f"tensor {tensor.name!r} is not supported in architecture {architecture!r}")
