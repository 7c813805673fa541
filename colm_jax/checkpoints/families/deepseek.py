"""DeepSeek-V2 and V3 (and R1): latent attention, mixtures with shared networks after a few dense layers.

The layers for predicting several tokens at once (DeepSeek-V3, section 2.2), stored after the last one, are left out.
"""

import re
from typing import Any

from colm_jax.checkpoints.families.family import TABLE, Family, Stored, read_sizes, read_uniform_windows, write_sizes
from colm_jax.checkpoints.families.fields import Fields, Json
from colm_jax.checkpoints.families.reference import default_of
from colm_jax.checkpoints.families.rope import RopeRules, read_rope, write_both_ropes
from colm_jax.models.config import Latent, Mixture, ModelConfig

_INNER_EPS = 1e-6  # of the norms within attention: the default of transformers' class, which no field changes
_METHODS = ("greedy", "group_limited_greedy")  # of DeepSeek-V2, to choose networks
_PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers")  # two names of one field


def _read_common(fields: Fields, interleaved: bool) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    fields.only("moe_layer_freq", 1, None)  # transformers ignores it, DeepSeek's own program does not
    sizes, bias = read_sizes(fields), fields.optional("attention_bias", bool)
    if sizes["kv_heads"] != sizes["heads"]:
        raise fields.error(
            f"'num_key_value_heads' ({sizes['kv_heads']}) and 'num_attention_heads' ({sizes['heads']}) differ; latent "
            "attention has as many of both"
        )
    latent = Latent(
        rank=fields.optional("kv_lora_rank", int),
        query_rank=fields.optional("q_lora_rank", int, None),
        plain=fields.optional("qk_nope_head_dim", int),
        rotary=fields.optional("qk_rope_head_dim", int),
        value=fields.optional("v_head_dim", int),
        rms_eps=_INNER_EPS,
    )
    dense, depth = fields.optional("first_k_dense_replace", int), sizes["depth"]
    if not 0 <= dense < depth:
        raise fields.error(f"field 'first_k_dense_replace' must be from 0 to {depth - 1}, got {dense}")
    rules = RopeRules(interleaved=interleaved, scales_scores=True, head_dim="qk_rope_head_dim")
    return {
        **sizes,
        "head_dim": latent.plain + latent.rotary,
        "latent": latent,
        "windows": read_uniform_windows(fields, depth, None),
        "rope": read_rope(fields, rules),
        "qkv_bias": bias,
        "out_bias": bias,
        "mixture_layers": tuple(i >= dense for i in range(depth)),
    }


def _read_mixture(fields: Fields, **own: Any) -> Mixture:
    ff, shared = fields.optional("moe_intermediate_size", int), fields.optional("n_shared_experts", int)
    if shared < 1:
        raise fields.error(f"field 'n_shared_experts' must be at least 1, got {shared}")
    return Mixture(
        networks=fields.optional("n_routed_experts", int),
        active=fields.optional("num_experts_per_tok", int),
        ff=ff,
        scale=fields.optional("routed_scaling_factor", float),
        shared_ff=ff * shared,
        wide_router=True,
        **own,
    )


def _read_v2(fields: Fields) -> ModelConfig:
    fields.published_code("DeepseekV2ForCausalLM")
    fields.only("scoring_func", "softmax", None)
    method = fields.optional("topk_method", str)
    if method not in _METHODS:
        raise fields.error(f"topk_method={method!r:.80} is not supported, only {' and '.join(_METHODS)}")
    fields.only("norm_topk_prob", False, None)  # transformers ignores it, DeepSeek's own program does not
    groups = {}
    for ours, theirs in (("groups", "n_group"), ("active_groups", "topk_group")):
        value = fields.optional(theirs, int, 1)  # ignored by the method "greedy"
        groups[ours] = value if method == _METHODS[1] else 1
    mixture = _read_mixture(fields, normalised=False, **groups)
    common = _read_common(fields, interleaved=True)
    return ModelConfig(family="deepseek_v2", **common, mixture=mixture, ff_bias=fields.optional("mlp_bias", bool))


def _read_v3(fields: Fields) -> ModelConfig:
    counts = [fields.given(key, int) for key in _PREDICTING]
    if None not in counts and counts[0] != counts[1]:
        raise fields.error(f"{_PREDICTING[0]!r} ({counts[0]}) and {_PREDICTING[1]!r} ({counts[1]}) disagree")
    if any(count is not None and count < 0 for count in counts):
        raise fields.error(f"field {_PREDICTING[0]!r} must not be below 0, got {min(filter(None, counts))}")
    fields.published_code("DeepseekV3ForCausalLM")
    fields.only("topk_method", "noaux_tc", None)
    fields.only("scoring_func", "sigmoid", None)
    mixture = _read_mixture(
        fields,
        scoring="sigmoid",
        bias="choice",
        normalised=fields.optional("norm_topk_prob", bool),
        groups=fields.optional("n_group", int),
        active_groups=fields.optional("topk_group", int),
        group_score="two_best",
    )
    common = _read_common(fields, interleaved=fields.optional("rope_interleave", bool))
    return ModelConfig(family="deepseek_v3", **common, mixture=mixture)


def _predicts_more(config: Json, name: str) -> bool:
    """Return whether a stored tensor is of the layers that predict several tokens at once."""
    given = [config[key] for key in _PREDICTING if config.get(key) is not None]
    count = given[0] if given else default_of("deepseek_v3", _PREDICTING[1])
    layer, depth = re.match(r"model\.layers\.(\d+)\.", name), config["num_hidden_layers"]
    return layer is not None and depth <= int(layer[1]) < depth + count


def _write_common(config: ModelConfig) -> Json:
    mixture, latent = config.mixture, config.latent
    assert mixture is not None and mixture.ff is not None and mixture.shared_ff is not None and latent is not None
    return {
        **{key: value for key, value in write_sizes(config).items() if key != "head_dim"},
        **write_both_ropes(config.rope),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "kv_lora_rank": latent.rank,
        "q_lora_rank": latent.query_rank,
        "qk_nope_head_dim": latent.plain,
        "qk_rope_head_dim": latent.rotary,
        "v_head_dim": latent.value,
        "first_k_dense_replace": config.mixtures.index(True),
        "n_routed_experts": mixture.networks,
        "num_experts_per_tok": mixture.active,
        "moe_intermediate_size": mixture.ff,
        "n_shared_experts": mixture.shared_ff // mixture.ff,
        "routed_scaling_factor": mixture.scale,
        "n_group": mixture.groups,
        "topk_group": mixture.active_groups,
    }


def _write_v2(config: ModelConfig) -> Json:
    assert config.mixture is not None
    method = _METHODS[config.mixture.active_groups < config.mixture.groups]
    return {**_write_common(config), "topk_method": method, "mlp_bias": config.ff_bias}


def _write_v3(config: ModelConfig) -> Json:
    assert config.mixture is not None
    own = {"norm_topk_prob": config.mixture.normalised, "rope_interleave": config.rope.interleaved}
    return {**_write_common(config), **own, _PREDICTING[0]: 0}


_ATTENTION, _MLP = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
_MIXTURE_TABLE = {
    "router.kernel": Stored(_MLP + "gate.weight", "transposed"),
    "router.correction": Stored(_MLP + "gate.e_score_correction_bias", "same"),
    **{name: Stored(f"{_MLP}experts.{{}}.{name}_proj.weight", "transposed") for name in ("gate", "up", "down")},
    **{
        f"shared.{name}.kernel": Stored(f"{_MLP}shared_experts.{name}_proj.weight", "transposed")
        for name in ("gate", "up", "down")
    },
    **{
        f"shared.{name}.bias": Stored(f"{_MLP}shared_experts.{name}_proj.bias", "same")
        for name in ("gate", "up", "down")
    },
}
_LATENT_TABLE = {
    "query_down.kernel": Stored(_ATTENTION + "q_a_proj.weight", "transposed"),
    "query_down.bias": Stored(_ATTENTION + "q_a_proj.bias", "same"),
    "query_norm.scale": Stored(_ATTENTION + "q_a_layernorm.weight", "same"),
    "query_up.kernel": Stored(_ATTENTION + "q_b_proj.weight", "transposed"),
    "key_value_down.kernel": Stored(_ATTENTION + "kv_a_proj_with_mqa.weight", "transposed"),
    "key_value_down.bias": Stored(_ATTENTION + "kv_a_proj_with_mqa.bias", "same"),
    "key_value_norm.scale": Stored(_ATTENTION + "kv_a_layernorm.weight", "same"),
    "key_value_up.kernel": Stored(_ATTENTION + "kv_b_proj.weight", "transposed"),
}
_TABLE = {
    **TABLE,
    **{f"layers.attention.{path}": stored for path, stored in _LATENT_TABLE.items()},
    **{f"layers.feed_forward.{path}": stored for path, stored in _MIXTURE_TABLE.items()},
}
DEEPSEEK_V2 = Family("deepseek_v2", "DeepseekV2ForCausalLM", _read_v2, _write_v2, _TABLE)
DEEPSEEK_V3 = Family("deepseek_v3", "DeepseekV3ForCausalLM", _read_v3, _write_v3, _TABLE, _predicts_more)
