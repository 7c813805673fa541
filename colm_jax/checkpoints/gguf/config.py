"""The config.json of a GGUF file, from its metadata; one function for each architecture of llama.cpp.

What llama.cpp itself fixes by architecture (Gemma 3's window pattern, SmolLM3's layers without rotary positions) is
fixed here too. A key of the architecture that is not read is an error that names it, since it may change the output.

Sources: the key names of llama.cpp's `gguf` package, its converters, and the configuration classes of transformers.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from colm_jax.checkpoints.gguf.header import Header
from colm_jax.checkpoints.gguf.keys import REQUIRED, Keys
from colm_jax.checkpoints.gguf.rope_factors import llama3_parameters
from colm_jax.checkpoints.gguf.tensors import read_vector

Json = dict[str, Any]
_MOST_NETWORKS = 1024  # of a mixture
_DEFAULT_THETA = 10_000.0  # llama.cpp's, where a file has none


def to_config(header: Header) -> Json:
    """Return the config.json of a file.

    Raises:
      UserError: an unsupported architecture or key, a missing key, or a wrong type.
    """
    keys = Keys(header)
    make = _ARCHITECTURES.get(keys.architecture)
    if make is None:
        raise header.error(f"architecture {keys.architecture!r:.80} is not supported, only {', '.join(_ARCHITECTURES)}")
    config = make(keys)
    keys.done()
    return config


def _common(keys: Keys, ff: int | None = None) -> Json:
    """Return the fields that have the same meaning in every architecture.

    Args:
      keys: the metadata.
      ff: the width of the feed-forward layers where the file need not say it.
    """
    heads, width = keys.integer("attention.head_count"), keys.integer("embedding_length")
    head_dim = keys.integer("attention.key_length", None)
    if head_dim is None:
        if not heads or width % heads:
            raise keys.error("attention.head_count", f"is {heads}, which does not divide the width {width}")
        head_dim = width // heads
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise keys.error("attention.value_length", f"differs from the length of keys, {head_dim}")
    return {
        "vocab_size": keys.shape("token_embd.weight", 2)[0],
        "hidden_size": width,
        "num_hidden_layers": keys.depth(),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": keys.integer("feed_forward_length", *([] if ff is None else [ff])),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in keys.header.tensors,
    }


def _drop_usual_head(common: Json) -> None:
    """Remove the head's size where it is the width over the heads, for families whose files do not state it."""
    if common["head_dim"] * common["num_attention_heads"] == common["hidden_size"]:
        common.pop("head_dim")


def _full_rotation(keys: Keys, head_dim: int) -> None:
    """Check that rotary positions cover the whole head."""
    if keys.integer("rope.dimension_count", head_dim) != head_dim:
        raise keys.error("rope.dimension_count", f"differs from the head's size, {head_dim}, which is not supported")


def _rope(keys: Keys) -> Json:
    """Return `rope_parameters`, from the keys of the scaling or, as Llama 3.1 has it, a tensor of factors."""
    theta = keys.number("rope.freq_base", _DEFAULT_THETA)
    kind, factor = keys.text("rope.scaling.type", "none"), keys.number("rope.scaling.factor", None)
    old = keys.number("rope.scale_linear", None)
    if old is not None and factor is None:
        kind, factor = "linear", old
    original = keys.integer("rope.scaling.original_context_length", None)
    factors = keys.header.tensors.get("rope_freqs.weight")
    if kind in ("none", "linear") and factor in (None, 0.0, 1.0):
        keys.only("rope.scaling.attn_factor", 1.0)
        if factors is None:
            return {"rope_type": "default", "rope_theta": theta}
        return llama3_parameters(read_vector(factors), theta, original, keys.header)
    if factors is not None:
        raise keys.header.error(
            f"tensor 'rope_freqs.weight' and {keys.architecture}.rope.scaling.type {kind!r}: two scalings"
        )
    if kind == "linear":
        keys.only("rope.scaling.attn_factor", 1.0)
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind != "yarn":
        raise keys.error("rope.scaling.type", f"is {kind!r:.80}; only 'linear' and 'yarn' are supported")
    if factor is None or original is None:
        raise keys.error("rope.scaling.type", "is 'yarn', which needs factor and original_context_length")
    keys.only("rope.scaling.attn_factor", 1.0)
    keys.only("rope.scaling.yarn_ext_factor", 1.0)
    keys.only("rope.scaling.yarn_attn_factor", 1.0)
    found = {
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        **found,
    }


def _networks(keys: Keys, default: Any = REQUIRED) -> int:
    """Return the number of networks of a mixture."""
    found = keys.integer("expert_count", default)
    if found > _MOST_NETWORKS:
        raise keys.error("expert_count", f"is {found}; at most {_MOST_NETWORKS} are supported")
    return found


def _has(keys: Keys, name: str) -> bool:
    return name in keys.header.tensors


def _llama(keys: Keys) -> Json:
    """Llama, and what llama.cpp stores as such: Mistral, which has no window there, and Mixtral."""
    common = _common(keys)
    _full_rotation(keys, common["head_dim"])
    common |= {"hidden_act": "silu", "rope_parameters": _rope(keys)}
    experts = _networks(keys, 0)
    used = keys.integer("expert_used_count", 0)
    if experts:
        return {
            "model_type": "mixtral",
            **common,
            "num_local_experts": experts,
            "num_experts_per_tok": used,
            "sliding_window": None,
        }
    return {
        "model_type": "llama",
        **common,
        "attention_bias": _has(keys, "blk.0.attn_q.bias"),
        "mlp_bias": _has(keys, "blk.0.ffn_up.bias"),
    }


def _qwen(keys: Keys, ff: int | None = None) -> Json:
    common = _common(keys, ff)
    _full_rotation(keys, common["head_dim"])
    return {**common, "hidden_act": "silu", "use_sliding_window": False, "rope_parameters": _rope(keys)}


def _qwen2(keys: Keys) -> Json:
    return {"model_type": "qwen2", **_qwen(keys)}


def _qwen3(keys: Keys) -> Json:
    return {"model_type": "qwen3", **_qwen(keys), "attention_bias": _has(keys, "blk.0.attn_q.bias")}


def _qwen_mixture(keys: Keys) -> Json:
    """Return the fields of Qwen's mixtures, all of whose layers are mixtures; a network's width is its tensor's."""
    experts = _networks(keys)
    width = keys.shape("blk.0.ffn_gate_exps.weight", 3)[1]
    if keys.integer("expert_feed_forward_length", width) != width:
        raise keys.error("expert_feed_forward_length", f"differs from the tensors' {width}")
    keys.only("expert_gating_func", 1)  # softmax
    keys.only("expert_weights_scale", 0.0, 1.0)
    return {
        **_qwen(keys, width),
        "num_experts": experts,
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "moe_intermediate_size": width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen2moe(keys: Keys) -> Json:
    keys.only("expert_weights_norm", False)
    common = _qwen_mixture(keys)
    shared = keys.shape("blk.0.ffn_gate_shexp.weight", 2)[0]
    if keys.integer("expert_shared_feed_forward_length", shared) != shared:
        raise keys.error("expert_shared_feed_forward_length", f"differs from the tensors' {shared}")
    _drop_usual_head(common)
    return {
        "model_type": "qwen2_moe",
        **common,
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": shared,
    }


def _qwen3moe(keys: Keys) -> Json:
    keys.only("expert_weights_norm", True)
    return {
        "model_type": "qwen3_moe",
        **_qwen_mixture(keys),
        "norm_topk_prob": True,
        "attention_bias": _has(keys, "blk.0.attn_q.bias"),
    }


def _gemma_scalar(keys: Keys, common: Json, deepest: int) -> float:
    """Return `query_pre_attn_scalar`: width / heads in the 27B model, known by its depth, else the head size."""
    if common["num_hidden_layers"] == deepest:
        return common["hidden_size"] / common["num_attention_heads"]
    return common["head_dim"]


def _gemma(keys: Keys) -> Json:
    common = _common(keys)
    _full_rotation(keys, common["head_dim"])
    return {**common, "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(keys: Keys) -> Json:
    common = _gemma(keys)
    return {
        "model_type": "gemma2",
        **common,
        "query_pre_attn_scalar": _gemma_scalar(keys, common, 46),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "rope_parameters": _rope(keys),
    }


def _gemma3(keys: Keys) -> Json:
    common, depth = _gemma(keys), keys.depth()
    windowed = keys.flags("attention.sliding_window_pattern", depth) or [(i + 1) % 6 != 0 for i in range(depth)]
    full = _rope(keys)
    window_theta = keys.number("rope.freq_base_swa", _DEFAULT_THETA)
    return {
        "model_type": "gemma3_text",
        **common,
        "query_pre_attn_scalar": _gemma_scalar(keys, common, 62),
        "final_logit_softcapping": keys.number("final_logit_softcapping", None),
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": _layer_types(windowed),
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": window_theta},
        },
    }


def _layer_types(windowed: list[bool]) -> list[str]:
    return ["sliding_attention" if window else "full_attention" for window in windowed]


def _phi3(keys: Keys) -> Json:
    common = _common(keys)
    head_dim, rotated = common["head_dim"], keys.integer("rope.dimension_count", None)
    _drop_usual_head(common)
    rope: Json = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base", _DEFAULT_THETA)}
    if rotated not in (None, head_dim):
        rope["partial_rotary_factor"] = rotated / head_dim
    original = keys.integer("rope.scaling.original_context_length", common["max_position_embeddings"])
    long, short = (keys.header.tensors.get(f"rope_factors_{kind}.weight") for kind in ("long", "short"))
    attention = keys.number("rope.scaling.attn_factor", None)
    if (long is None) != (short is None):
        raise keys.header.error("of 'rope_factors_long.weight' and 'rope_factors_short.weight' one is missing")
    if long is not None and short is not None:
        rope |= {
            "rope_type": "longrope",
            "long_factor": _shortest(read_vector(long)),
            "short_factor": _shortest(read_vector(short)),
            "original_max_position_embeddings": original,
        }
        usual = _longrope_attention(common["max_position_embeddings"] / max(1, original), original)
        if attention is not None and not math.isclose(attention, usual, rel_tol=1e-6):
            rope["attention_factor"] = attention
        common["original_max_position_embeddings"] = original
    elif attention not in (None, 1.0):
        raise keys.error("rope.scaling.attn_factor", f"is {attention}, and the file has no factors")
    window = keys.integer("attention.sliding_window", 0)
    keys.only("rope.scaling.type", "longrope", "none")
    return {
        "model_type": "phi3",
        **common,
        "hidden_act": "silu",
        # A window that is as long as the context, or longer, hides nothing.
        "sliding_window": window if 0 < window < common["max_position_embeddings"] else None,
        "rope_parameters": rope,
    }


def _longrope_attention(factor: float, original: int) -> float:
    """Return by what longrope scales attention where a file does not say it (as transformers)."""
    return 1.0 if factor <= 1 or original < 2 else math.sqrt(1 + math.log(factor) / math.log(original))


def _shortest(values: np.ndarray) -> list[float]:
    """Return 32-bit numbers as the shortest decimals that stand for them."""
    return [float(str(value)) for value in values.astype(np.float32)]


def _granite(keys: Keys) -> Json:
    common = _common(keys)
    _full_rotation(keys, common["head_dim"])
    _drop_usual_head(common)
    return {
        "model_type": "granite",
        **common,
        "hidden_act": "silu",
        "attention_bias": _has(keys, "blk.0.attn_q.bias"),
        "mlp_bias": _has(keys, "blk.0.ffn_up.bias"),
        "attention_multiplier": keys.number("attention.scale"),
        "embedding_multiplier": keys.number("embedding_scale"),
        "residual_multiplier": keys.number("residual_scale"),
        "logits_scaling": keys.number("logit_scale"),
        "rope_parameters": _rope(keys),
    }


def _olmo2(keys: Keys) -> Json:
    """OLMo 2; with windows, OLMo 3, which llama.cpp stores under the same name."""
    common = _common(keys)
    _full_rotation(keys, common["head_dim"])
    _drop_usual_head(common)
    common |= {
        "hidden_act": "silu",
        "attention_bias": _has(keys, "blk.0.attn_q.bias"),
    }
    rope, theta = _rope(keys), keys.number("rope.freq_base", _DEFAULT_THETA)
    window, depth = keys.integer("attention.sliding_window", 0), common["num_hidden_layers"]
    windowed = keys.flags("attention.sliding_window_pattern", depth)
    if not window:
        return {"model_type": "olmo2", **common, "rope_parameters": rope}
    if windowed is None:
        windowed = [(i + 1) % 4 != 0 for i in range(depth)]
    return {
        "model_type": "olmo3",
        **common,
        "sliding_window": window,
        "layer_types": _layer_types(windowed),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
    }


def _smollm3(keys: Keys) -> Json:
    common = _common(keys)
    _full_rotation(keys, common["head_dim"])
    _drop_usual_head(common)
    every = 4  # the last of every four layers has no rotary positions
    return {
        "model_type": "smollm3",
        **common,
        "hidden_act": "silu",
        "attention_bias": _has(keys, "blk.0.attn_q.bias"),
        "mlp_bias": _has(keys, "blk.0.ffn_up.bias"),
        "use_sliding_window": False,
        "no_rope_layers": [int((i + 1) % every != 0) for i in range(common["num_hidden_layers"])],
        "no_rope_layer_interval": every,
        "rope_parameters": _rope(keys),
    }


def _glm4(keys: Keys) -> Json:
    common = _common(keys)
    rotated = keys.integer("rope.dimension_count", common["head_dim"])
    return {
        "model_type": "glm4",
        **common,
        "hidden_act": "silu",
        "attention_bias": _has(keys, "blk.0.attn_q.bias"),
        "rope_parameters": {**_rope(keys), "partial_rotary_factor": rotated / max(1, common["head_dim"])},
    }


def _gpt_oss(keys: Keys) -> Json:
    width = keys.shape("blk.0.ffn_gate_exps.weight", 3)[1]
    keys.only("feed_forward_length", width)
    keys.only("expert_feed_forward_length", width)
    common = _common(keys, width)
    _full_rotation(keys, common["head_dim"])
    rope = _rope(keys)
    if rope["rope_type"] == "yarn":
        rope["truncate"] = False  # as the published models have it; no key says so
    depth = common["num_hidden_layers"]
    windowed = keys.flags("attention.sliding_window_pattern", depth) or [i % 2 == 0 for i in range(depth)]
    return {
        "model_type": "gpt_oss",
        **common,
        "hidden_act": "silu",
        "attention_bias": True,
        "num_local_experts": _networks(keys),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": _layer_types(windowed),
        "rope_parameters": rope,
    }


_ARCHITECTURES: dict[str, Callable[[Keys], Json]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "granite": _granite,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "glm4": _glm4,
    "gpt-oss": _gpt_oss,
}
