"""GGUF files for tests, written by llama.cpp's own package under its own names, as its converters write them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType

from colm_jax.checkpoints.families import from_huggingface
from tests.models.families import weights

TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(10)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
_SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 640,
    "rms_norm_eps": 0.03,
}
_ROPE = {"rope_parameters": {"rope_theta": 177.0, "rope_type": "default"}}
_SILU = {"hidden_act": "silu"}
_GELU = {"hidden_activation": "gelu_pytorch_tanh"}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 6.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 150,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 160,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "short_factor": [1.0 + i / 8 for i in range(12)],
    "long_factor": [1.5 + i / 2 for i in range(12)],
    "original_max_position_embeddings": 320,
    "partial_rotary_factor": 0.75,
}
_WINDOWS = ["sliding_attention", "full_attention"]
# What config.json says of each tiny model; the key's first part is llama.cpp's architecture.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_ROPE, **_SILU, "attention_bias": True, "mlp_bias": True},
    "llama/3": {"model_type": "llama", "rope_parameters": _LLAMA3, **_SILU, "tie_word_embeddings": True},
    "llama/linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 321.0, "factor": 3.0},
        **_SILU,
    },
    "llama/mixtral": {
        "model_type": "mixtral",
        **_ROPE,
        **_SILU,
        "sliding_window": None,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
    },
    "qwen2": {"model_type": "qwen2", "rope_parameters": _YARN, **_SILU},
    "qwen3": {"model_type": "qwen3", **_ROPE, **_SILU, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        **_GELU,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 32,
        "sliding_window": 80,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        **_GELU,
        "num_hidden_layers": 7,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 32,
        "sliding_window": 80,
        "layer_types": [*5 * ["sliding_attention"], "full_attention", "sliding_attention"],
    },
    "phi3": {"model_type": "phi3", **_ROPE, **_SILU, "sliding_window": 90},
    "phi3/longrope": {
        "model_type": "phi3",
        "rope_parameters": _LONG,
        **_SILU,
        "sliding_window": None,
        "original_max_position_embeddings": 320,
    },
    "granite": {
        "model_type": "granite",
        **_ROPE,
        **_SILU,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.5,
        "logits_scaling": 4.0,
    },
    "olmo2": {"model_type": "olmo2", **_ROPE, **_SILU},
    "olmo2/3": {
        "model_type": "olmo3",
        "rope_parameters": {
            "full_attention": _YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
        **_SILU,
        "sliding_window": 70,
        "layer_types": [*_WINDOWS, *_WINDOWS],
    },
    "smollm3": {"model_type": "smollm3", **_ROPE, **_SILU, "no_rope_layers": [1, 1, 1, 0]},
    "gpt-oss": {
        "model_type": "gpt_oss",
        "rope_parameters": {**_YARN, "truncate": False},
        **_SILU,
        "attention_bias": True,
        "sliding_window": 90,
        "layer_types": [*_WINDOWS, *_WINDOWS],
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
    },
    "glm4": {
        "model_type": "glm4",
        "rope_parameters": {"rope_theta": 177.0, "rope_type": "default", "partial_rotary_factor": 0.5},
        **_SILU,
        "attention_bias": True,
    },
}
CONFIGS = {name: {**_SIZES, "tie_word_embeddings": False, **fields} for name, fields in CONFIGS.items()}
for _name in ("granite", "olmo2", "olmo2/3", "smollm3"):  # whose heads share the width
    CONFIGS[_name]["head_dim"] = 16


def add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """A SentencePiece vocabulary of single letters, filled up with tokens that are not used."""
    kinds = [gguf.TokenType.UNKNOWN, *2 * [gguf.TokenType.CONTROL], *10 * [gguf.TokenType.BYTE]]
    kinds += (len(TOKENS) - len(kinds)) * [gguf.TokenType.NORMAL]
    rest = size - len(TOKENS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*TOKENS, *(f"[PAD{i}]" for i in range(rest))])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([*kinds, *rest * [gguf.TokenType.UNUSED]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def add_sizes(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """The keys that every architecture has."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])


def _add_keys(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """The keys of a configuration."""
    add_sizes(writer, config)
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(config["head_dim"] * rope.get("partial_rotary_factor", 1)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        scale = config["max_position_embeddings"] / rope["original_max_position_embeddings"]
        original = rope["original_max_position_embeddings"]
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    if config["model_type"] == "phi3":
        writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", 640))
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "olmo3":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if "num_local_experts" in config or "num_experts" in config:
        writer.add_expert_count(config.get("num_experts", config.get("num_local_experts")))
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    for field, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
    ):
        if field in config:
            add(config[field])


def _paired(value: np.ndarray, heads: int) -> np.ndarray:
    """Rotary halves of each head as pairs, as llama.cpp's converter stores Llama's queries and keys."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def llama3_factors(config: Mapping[str, Any]) -> np.ndarray:
    """By what Llama 3 divides each rotary frequency."""
    rope, half = config["rope_parameters"], config["head_dim"] // 2
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(half) / half)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((rope["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def gguf_tensors(architecture: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict:
    """Tensors under llama.cpp's names, converted as it converts them."""
    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names, found, stacks = gguf.get_tensor_name_map(number, config["num_hidden_layers"]), {}, {}
    for name, value in _apart(tensors).items():
        stem, _, kind = name.rpartition(".")
        if name.endswith("sinks"):
            stem, kind = name, "weight"
        if expert := re.search(r"\.experts\.(\d+)\.", name):
            stem = stem.replace(expert[0], ".experts.")
        theirs = f"{names.get_name(stem)}.{kind}"
        assert not theirs.startswith("None"), name
        if architecture in ("llama", "granite", "smollm3") and re.search(r"\.(q|k)_proj\.", name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            value = _paired(value, heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if theirs.endswith("ffn_gate_inp_shexp.weight"):
            value = value[0]
        if expert:
            stacks.setdefault(theirs, {})[int(expert[1])] = value
        else:
            found[theirs] = value
    found |= {name: np.stack([parts[i] for i in sorted(parts)]) for name, parts in stacks.items()}
    rope = config["rope_parameters"]
    if rope.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = llama3_factors(config)
    if rope.get("rope_type") == "longrope":
        found |= {f"rope_factors_{k}.weight": np.asarray(rope[f"{k}_factor"], np.float32) for k in ("long", "short")}
    return found


def _apart(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """gpt-oss's networks, output by input, and gate apart from up; all other tensors as they are."""
    found = {}
    for name, value in tensors.items():
        kind = "bias" if name.endswith("_bias") else "weight"
        stem = name.removesuffix("_bias")
        if not stem.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[name] = value
            continue
        value = value if kind == "bias" else value.swapaxes(1, 2)
        if stem.endswith("down_proj"):
            found[f"{stem}.{kind}"] = value
        else:
            for i, half in enumerate(("gate_proj", "up_proj")):
                found[f"{stem.removesuffix('gate_up_proj')}{half}.{kind}"] = value[:, i::2]
    return found


def encode(value: np.ndarray, kind: GGMLQuantizationType, rng: np.random.Generator) -> np.ndarray:
    """The bytes of a matrix in a type; of types that the package cannot write, arbitrary blocks of small scales."""
    try:
        return quants.quantize(value.astype(np.float32), kind)
    except NotImplementedError:
        block, size = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (*value.shape[:-1], value.shape[-1] // block, size)).astype(np.uint8)
        # Each of the block's 16-bit scales is at its beginning or, in two types, at its end.
        scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind.name]
        for place in scales:
            blocks[..., place : place + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
        return blocks.reshape(*value.shape[:-1], -1)


def write_gguf(
    file: Path,
    architecture: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    **edits: Any,
) -> Path:
    """Write a model; matrices are of type `kind`. `edits` may replace `add_tokenizer` and `add_keys`, and hold
    `extra` tensors."""
    writer = gguf.GGUFWriter(file, architecture)
    edits.get("add_keys", _add_keys)(writer, config)
    edits.get("add_tokenizer", add_tokenizer)(writer, config["vocab_size"])
    rng = np.random.default_rng(0)
    for name, value in (gguf_tensors(architecture, config, tensors) | edits.get("extra", {})).items():
        if value.ndim == 1 or name.endswith(".bias") or kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
        elif kind == GGMLQuantizationType.F16:
            writer.add_tensor(name, np.ascontiguousarray(value, np.float16))
        else:
            writer.add_tensor(name, encode(value, kind, rng), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_tiny(file: Path, name: str = "llama", kind=GGMLQuantizationType.F32, **edits: Any) -> Path:
    """Write a tiny model of CONFIGS, with random weights."""
    config = edits.pop("config", CONFIGS[name])
    return write_gguf(file, name.partition("/")[0], config, weights(config), kind, **edits)


def write_directory(directory: Path, name: str) -> Path:
    """The same model as a Hugging Face directory."""
    from colm_jax.checkpoints.huggingface import save_tensors

    directory.mkdir(parents=True)
    config = CONFIGS[name]
    from_huggingface(config, name)
    save_tensors(weights(config), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory
