"""One tiny model per family, every field of its config.json away from its default, and its random weights.

RoPE theta, eps, head size, windows, soft caps and scalings are such that getting one wrong shows in the logits.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from colm_jax.checkpoints.families import from_huggingface
from colm_jax.checkpoints.huggingface import DTYPES, load_model, save_tensors, to_tensors
from colm_jax.checkpoints.layout import stored_shapes
from colm_jax.models.cache import KVCache
from colm_jax.parallel import make_mesh
from tests.tiny import run

LENGTH = 600  # tokens of a parity text: beyond every window and every original context
_SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 72,
    "max_position_embeddings": 640,
    "rms_norm_eps": 0.03,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 6.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 150,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "rope_parameters": {"rope_theta": 177.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama-3": {"model_type": "llama", "rope_parameters": _LLAMA3, "tie_word_embeddings": True},
    "llama-linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 321.0, "factor": 3.0},
        "tie_word_embeddings": False,
    },
    "mistral": {
        "model_type": "mistral",
        "rope_parameters": {"rope_theta": 177.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "sliding_window": 100,
    },
    "mixtral": {
        "model_type": "mixtral",
        "rope_parameters": {"rope_theta": 177.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "sliding_window": 200,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
    },
    "qwen2": {
        "model_type": "qwen2",
        "rope_parameters": {"rope_theta": 177.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "use_sliding_window": True,
        "sliding_window": 90,
        "max_window_layers": 1,
    },
    "qwen3": {
        "model_type": "qwen3",
        "rope_parameters": {"rope_theta": 177.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 90,
        "max_window_layers": 2,
    },
    "gemma2": {
        "model_type": "gemma2",
        "rope_parameters": {"rope_theta": 177.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 7,
        "sliding_window": 80,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 7,
        "sliding_window": 80,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
}
_PLAIN_ROPE = {"rope_theta": 177.0, "rope_type": "default"}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 5.0,
    "original_max_position_embeddings": 130,
    "beta_fast": 6.0,
    "beta_slow": 1.5,
    "attention_factor": 1.3,
    "truncate": False,
}
_WINDOWED = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
CONFIGS |= {
    "llama-yarn": {"model_type": "llama", "rope_parameters": _YARN, "tie_word_embeddings": False},
    "phi3": {
        "model_type": "phi3",
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 321.0,
            "short_factor": [1.1, 1.4],
            "long_factor": [2.0, 5.0],
            "original_max_position_embeddings": 150,
            "partial_rotary_factor": 0.5,
        },
        "original_max_position_embeddings": 150,
        "partial_rotary_factor": 0.5,
        "head_dim": 8,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "sliding_window": 400,
    },
    "olmo2": {
        "model_type": "olmo2",
        "rope_parameters": _PLAIN_ROPE,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
    "olmo3": {
        "model_type": "olmo3",
        "rope_parameters": {
            "full_attention": {key: value for key, value in _YARN.items() if key != "truncate"},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
        "tie_word_embeddings": True,
        "attention_bias": True,
        "sliding_window": 90,
        "layer_types": _WINDOWED,
    },
    "smollm3": {
        "model_type": "smollm3",
        "pad_token_id": 0,
        "rope_parameters": _YARN,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
        "no_rope_layers": [1, 0, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 90,
        "layer_types": _WINDOWED,
    },
    "granite": {
        "model_type": "granite",
        "rope_parameters": _PLAIN_ROPE,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 1.7,
        "attention_multiplier": 0.6,
        "residual_multiplier": 0.4,
        "logits_scaling": 1.6,
    },
    "glm4": {
        "model_type": "glm4",
        "pad_token_id": 0,
        "rope_parameters": {**_PLAIN_ROPE, "partial_rotary_factor": 0.67},
        "partial_rotary_factor": 0.67,
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    "ministral": {
        "model_type": "ministral",
        "rope_parameters": _PLAIN_ROPE,
        "tie_word_embeddings": False,
        "sliding_window": 90,
        "layer_types": _WINDOWED,
    },
    "ministral3": {
        "model_type": "ministral3",
        "pad_token_id": 0,
        "rope_parameters": {key: value for key, value in _YARN.items() if key != "attention_factor"}
        | {"mscale": 0.6, "mscale_all_dim": 0.9, "llama_4_scaling_beta": 0.4},
        "tie_word_embeddings": False,
        "sliding_window": 400,
    },
    "qwen2-moe": {
        "model_type": "qwen2_moe",
        "rope_parameters": _PLAIN_ROPE,
        "tie_word_embeddings": False,
        "qkv_bias": False,
        "use_sliding_window": True,
        "sliding_window": 90,
        "max_window_layers": 2,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    },
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "rope_parameters": _YARN,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 400,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
    },
    "gpt-oss": {
        "model_type": "gpt_oss",
        "rope_parameters": _YARN,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "sliding_window": 90,
        "layer_types": _WINDOWED,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "swiglu_limit": 0.9,
        "swiglu_alpha": 1.3,
    },
    "llama4": {
        "model_type": "llama4_text",
        "rope_parameters": _LLAMA3,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "intermediate_size_mlp": 40,
        "use_qk_norm": True,
        "no_rope_layers": [1, 0, 1, 1],
        "attention_chunk_size": 110,
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention", "full_attention"],
        "attn_temperature_tuning": True,
        "attn_scale": 0.7,
        "floor_scale": 35,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "moe_layers": [1, 3],
    },
    "deepseek-v2": {
        "model_type": "deepseek_v2",
        "rope_parameters": {key: value for key, value in _YARN.items() if key != "attention_factor"}
        | {"mscale": 0.6, "mscale_all_dim": 0.9},
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
        "q_lora_rank": None,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 3,
        "topk_group": 2,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "rope_parameters": {key: value for key, value in _YARN.items() if key != "attention_factor"}
        | {"mscale": 0.6, "mscale_all_dim": 0.9},
        "tie_word_embeddings": True,
        "attention_bias": True,
        "q_lora_rank": 20,
        "first_k_dense_replace": 2,
        "n_group": 3,
        "topk_group": 2,
        "norm_topk_prob": False,
        "rope_interleave": False,
    },
}
_DEEPSEEK = {
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "routed_scaling_factor": 0.7,
    "num_key_value_heads": 6,
    "head_dim": 8,
}
CONFIGS |= {name: {**fields, **_DEEPSEEK} for name, fields in CONFIGS.items() if "deepseek" in name}
CONFIGS = {name: {**_SIZES, **fields} for name, fields in CONFIGS.items()}


def weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor under its checkpoint name, drawn in the order of the names from one seed."""
    rng, drawn, ours = np.random.default_rng(7), {}, from_huggingface(config, "config")
    for name, shape in sorted(stored_shapes(ours).items()):
        if len(shape) == 1:
            centre = 1 if name.endswith("norm.weight") and not ours.zero_centred_norm else 0
            drawn[name] = (0.3 * rng.standard_normal(shape) + centre).astype(np.float32)
        else:  # sharp attention: position errors must show
            drawn[name] = (1.4 * shape[1] ** -0.5 * rng.standard_normal(shape)).astype(np.float32)
    return drawn


def tokens() -> np.ndarray:
    """The parity text, [LENGTH]."""
    return np.random.default_rng(0).integers(0, _SIZES["vocab_size"], LENGTH)


def write_family(directory: Path, name: str, dtype: str = "float32", **changes: Any) -> Path:
    """config.json and model.safetensors of a family; `changes` to config.json (None removes a field)."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(
        {key: value.astype(DTYPES[dtype]) for key, value in weights(CONFIGS[name]).items()},
        directory / "model.safetensors",
    )
    removed = {key for key, value in changes.items() if value is None}
    config = {key: value for key, value in {**CONFIGS[name], **changes}.items() if key not in removed}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


# What is measured of each family, by the tests and for the table of docs/families.md.


def parity_error(directory: Path, expected: np.ndarray, positions: np.ndarray) -> float:
    """Largest difference of logits from those of transformers."""
    _, logits = run(load_model(directory, "float32", make_mesh())[0], tokens()[None])
    return float(np.abs(np.asarray(logits[0])[positions] - expected).max())


def _is_wide(name: str) -> bool:
    """Whether a tensor is float32 in a model of any type."""
    return name.endswith("e_score_correction_bias")


def round_trips(directory: Path) -> bool:
    """Whether loading and writing gives back every byte, in every type."""
    stored = load_file(directory / "model.safetensors")
    for dtype, kind in DTYPES.items():
        expected = {name: value.astype(kind) if not _is_wide(name) else value for name, value in stored.items()}
        written = to_tensors(load_model(directory, dtype, make_mesh())[0])
        if set(written) != set(expected) or any(written[k].tobytes() != v.tobytes() for k, v in expected.items()):
            return False
    return True


def cached_error(directory: Path, quantize: str | None = None, packed: bool = False) -> float:
    """Largest difference of hidden states, read through the cache in chunks, from those of one pass.

    Two sequences, of which the second reads half of each chunk: the cache's rows are per sequence.
    """
    decoder = load_model(directory, "float32", make_mesh(), quantize=quantize, stacked=False, packed=packed)[0]
    expected, chunk = np.asarray(run(decoder, tokens()[None])[0][0]), 50
    graph, state = nnx.split(decoder)
    cache = KVCache.empty(decoder.config, 2, LENGTH + chunk, jnp.float32)
    worst, done = 0.0, np.zeros(2, int)
    while done[0] < LENGTH:
        count = np.array([chunk, chunk // 2])
        rows = np.stack([tokens()[start : start + chunk] for start in done])
        hidden, cache = _read(graph, state, rows, cache, count.astype(np.int32))
        for b, n in enumerate(count):
            worst = max(worst, float(np.abs(hidden[b, :n] - expected[done[b] : done[b] + n]).max()))
        done += count
    return worst


@jax.jit(static_argnames="graph")
def _read(graph, state, rows, cache, count):
    hidden, new = nnx.merge(graph, state)(rows, cache)
    return hidden, cache.write(new, count)


def sharded_error(directory: Path) -> float:
    """Largest difference of logits on eight devices (data, fsdp, tensor = 2, 2, 2) from those on one."""
    rows = np.stack([tokens(), tokens()[::-1]])
    logits = [run(load_model(directory, "float32", make_mesh(*mesh))[0], rows)[1] for mesh in ((1, 1, 1), (2, 2, 2))]
    assert len(logits[1].sharding.device_set) == 8
    return float(np.abs(np.asarray(logits[0]) - np.asarray(logits[1])).max())
