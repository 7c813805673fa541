"""Every field counts: changing it in config.json, behind the weights' back, changes the logits or is refused."""

import copy
import dataclasses
from functools import lru_cache

import numpy as np
import pytest

from colm_jax.checkpoints.families import from_huggingface
from colm_jax.checkpoints.huggingface import load_model
from colm_jax.errors import UserError
from colm_jax.models.config import Latent, Mixture, ModelConfig, Temperature
from colm_jax.models.rope_config import Bands, DynamicNTK, LongRope, Rope, Yarn
from colm_jax.parallel import make_mesh
from tests.models.families import CONFIGS, tokens, write_family
from tests.tiny import edit_json

FROM = 300  # logits are compared from this token on: beyond most windows and original contexts


def logits(directory):
    """[T,V] of the parity text. Operation by operation: a changed number compiles nothing again."""
    decoder = load_model(directory, "float32", make_mesh(), stacked=False)[0]
    return np.asarray(decoder.logits(decoder(tokens()[None])[0]))[0]


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """A family's logits before a change."""
    return lru_cache(lambda name: logits(write_family(tmp_path_factory.mktemp("before") / name, name)))


def full_rope(**fields):
    full = {**CONFIGS["gemma3"]["rope_parameters"]["full_attention"], **fields}
    return {"rope_parameters": {**CONFIGS["gemma3"]["rope_parameters"], "full_attention": full}}


def local_rope(**fields):
    local = {"rope_type": "default", "rope_theta": 50.0, **fields}
    return {"rope_parameters": {**CONFIGS["gemma3"]["rope_parameters"], "sliding_attention": local}}


def rope(name, **fields):
    return {"rope_parameters": {**CONFIGS[name]["rope_parameters"], **fields}}


# For each field of ModelConfig and of what it holds, changes of config.json behind the weights' back: (family, change,
# effect). No effect named: the last logits change; else what the error says.
CHANGES = {
    "family": [
        ("mistral", {"model_type": "llama", "sliding_window": None}, ""),
        ("llama", {"model_type": "gpt2"}, "gpt2"),
    ],
    "vocab_size": [("llama", {"vocab_size": 60}, r"expected \[60, 48\]")],
    "width": [("llama", {"hidden_size": 24}, "shape")],
    "depth": [("llama", {"num_hidden_layers": 3}, "unknown tensor 'model.layers.3")],
    "heads": [("llama", {"num_attention_heads": 8}, "self_attn")],
    "kv_heads": [("llama", {"num_key_value_heads": 1}, "self_attn")],
    "head_dim": [("llama", {"head_dim": 6, "num_attention_heads": 12, "num_key_value_heads": 4}, "")],
    "ff": [("llama", {"intermediate_size": 24}, "mlp")],
    "context": [("llama", {"max_position_embeddings": 300}, "nothing")],
    "rope": [
        ("llama", {"rope_parameters": {"rope_theta": 180.0}}, ""),
        ("llama-linear", {"rope_parameters": {"rope_type": "linear", "rope_theta": 321.0, "factor": 3.1}}, ""),
        ("llama-3", rope("llama-3", factor=7.0), ""),
        ("llama-3", rope("llama-3", low_freq_factor=1.0), ""),
        ("llama-3", rope("llama-3", high_freq_factor=8.0), ""),
        ("llama-3", rope("llama-3", original_max_position_embeddings=200), ""),
        ("llama-3", rope("llama-3", rope_theta=4000.0), ""),
        ("gemma3", full_rope(rope_theta=950.0), ""),
        ("gemma3", full_rope(factor=5.0), ""),
    ],
    "rms_eps": [("llama", {"rms_norm_eps": 0.02}, "")],
    "tied": [
        ("llama", {"tie_word_embeddings": True}, "ties the head"),
        ("qwen3", {"tie_word_embeddings": False}, "lm_head"),
    ],
    "activation": [
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation='silu'"),
    ],
    "qkv_bias": [
        ("llama", {"attention_bias": False}, "unknown tensor .*bias"),
        ("gemma2", {"attention_bias": True}, "bias"),
    ],
    "out_bias": [("qwen3", {"attention_bias": False}, "unknown tensor .*bias")],
    "ff_bias": [("llama", {"mlp_bias": False}, "unknown tensor .*mlp")],
    "qk_norm": [("qwen3", {"model_type": "qwen2"}, "unknown tensor .*norm")],
    "post_norm": [("gemma2", {"model_type": "llama", "sliding_window": None}, "unknown tensor .*norm")],
    "zero_centred_norm": [("gemma2", {"model_type": "llama", "sliding_window": None}, "unknown tensor .*norm")],
    "scaled_embedding": [("gemma2", {"model_type": "llama", "sliding_window": None}, "unknown tensor .*norm")],
    "attention_scalar": [("gemma2", {"query_pre_attn_scalar": 8}, ""), ("gemma3", {"query_pre_attn_scalar": 8}, "")],
    "attention_softcap": [
        ("gemma2", {"attn_logit_softcapping": 4.0}, ""),
        ("gemma2", {"attn_logit_softcapping": None}, ""),
        ("gemma3", {"attn_logit_softcapping": 4.0}, "attn_logit_softcapping=4.0"),
    ],
    "logit_softcap": [
        ("gemma2", {"final_logit_softcapping": 4.0}, ""),
        ("gemma3", {"final_logit_softcapping": 4.0}, ""),
    ],
    "windows": [
        ("mistral", {"sliding_window": 101}, ""),
        ("mistral", {"sliding_window": None}, ""),
        ("mixtral", {"sliding_window": 201}, ""),
        ("qwen2", {"sliding_window": 91}, ""),
        ("qwen2", {"max_window_layers": 2}, ""),
        ("qwen2", {"use_sliding_window": False}, ""),
        ("gemma2", {"sliding_window": 81}, ""),
        ("gemma2", {"layer_types": ["full_attention"] * 4}, ""),
        ("gemma3", {"layer_types": None}, ""),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 3}, ""),
        ("gemma3", {"layer_types": ["chunked_attention"] * 4}, "'layer_types' has 'chunked_attention'"),
        ("gemma3", {"layer_types": ["full_attention"]}, "'layer_types' has 1 entries for 4 layers"),
    ],
    "window_rope": [("gemma3", local_rope(rope_theta=60.0), "")],
    "mixture": [("mixtral", {"num_local_experts": 4}, "unknown tensor|shape")],
    "mixture_layers": [
        ("llama4", {"moe_layers": [0, 3]}, "unknown tensor"),
        ("llama4", {"moe_layers": None}, "unknown tensor"),  # all are mixtures
        ("llama4", {"moe_layers": [4]}, "numbers of layers from 0 to 3"),
        ("deepseek-v3", {"first_k_dense_replace": 1}, "unknown tensor"),
        ("deepseek-v2", {"first_k_dense_replace": 4}, "from 0 to 3, got 4"),
        ("deepseek-v2", {"moe_layer_freq": 2}, "moe_layer_freq=2"),
    ],
    "activation_limit": [("gpt-oss", {"swiglu_limit": 0.5}, "")],
    "activation_slope": [("gpt-oss", {"swiglu_alpha": 1.7}, "")],
    "pre_norm": [("olmo2", {"model_type": "llama"}, "unknown tensor .*norm")],
    "embedding_multiplier": [("granite", {"embedding_multiplier": 3.0}, "")],
    "residual_multiplier": [("granite", {"residual_multiplier": 0.5}, "")],
    "logit_divisor": [("granite", {"logits_scaling": 2.0}, "")],
    "attention_multiplier": [("granite", {"attention_multiplier": 0.5}, "")],
    "sinks": [("gpt-oss", {"model_type": "mixtral"}, "layers are alike")],
    "chunked": [
        ("llama4", {"attention_chunk_size": 120}, ""),
        ("llama4", {"attention_chunk_size": 700}, ""),
        ("smollm3", {"sliding_window": None}, "field 'sliding_window' is missing"),
        ("llama4", {"layer_types": ["full_attention"] * 4}, ""),
        ("llama4", {"layer_types": ["sliding_attention"] * 4}, "'layer_types' has 'sliding_attention'"),
        ("llama4", {"layer_types": None}, ""),  # chunks where there are rotary positions
    ],
    "rope_layers": [
        ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}, ""),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}, ""),
        ("smollm3", {"no_rope_layers": [1, 1, 1]}, "4 values 0 or 1"),
        ("llama4", {"no_rope_layers": [1, 1, 1, 0]}, ""),
        ("llama4", {"no_rope_layers": []}, ""),
    ],
    "temperature": [
        ("llama4", {"attn_temperature_tuning": False}, ""),
        ("llama4", {"attn_temperature_tuning": 4}, "nothing"),
        ("llama4", {"attn_temperature_tuning": 0}, ""),
        ("llama4", {"attn_temperature_tuning": "yes"}, "wrong type"),
    ],
    "latent": [("deepseek-v2", {"model_type": "llama"}, "unknown tensor|shape")],
    "Rope.theta": [("phi3", rope("phi3", rope_theta=400.0), ""), ("gpt-oss", rope("gpt-oss", rope_theta=4000.0), "")],
    "Rope.factor": [("llama-yarn", rope("llama-yarn", factor=6.0), "")],
    "Rope.scaling": [
        ("llama-yarn", {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, ""),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.4}},
            "'yarn' is expected",
        ),
        ("phi3", rope("phi3", rope_type="linear"), "rope type 'linear'"),
    ],
    "Rope.dim": [
        ("glm4", {"partial_rotary_factor": 1.0, **rope("glm4", partial_rotary_factor=1.0)}, ""),
        ("glm4", {"partial_rotary_factor": 0.4, **rope("glm4", partial_rotary_factor=0.4)}, ""),
        ("phi3", {"partial_rotary_factor": 1.0, **rope("phi3", partial_rotary_factor=1.0)}, "factors for 4 pairs"),
        ("llama", {"partial_rotary_factor": 0.5}, "part of the head"),
    ],
    "Rope.interleaved": [("deepseek-v3", {"rope_interleave": True}, "")],
    "Bands.low": [("llama4", rope("llama4", low_freq_factor=1.0), "")],
    "Bands.high": [("llama4", rope("llama4", high_freq_factor=8.0), "")],
    "Bands.original_context": [("llama4", rope("llama4", original_max_position_embeddings=250), "")],
    "Yarn.original_context": [("gpt-oss", rope("gpt-oss", original_max_position_embeddings=200), "")],
    "Yarn.beta_fast": [
        ("gpt-oss", rope("gpt-oss", beta_fast=9.0), ""),
        ("gpt-oss", rope("gpt-oss", beta_fast=1.0), "beta"),
    ],
    "Yarn.beta_slow": [("gpt-oss", rope("gpt-oss", beta_slow=0.7), "")],
    "Yarn.truncate": [("gpt-oss", rope("gpt-oss", truncate=True), "")],
    "Yarn.attention_factor": [("gpt-oss", rope("gpt-oss", attention_factor=1.1), "")],
    "Yarn.mscale": [
        ("deepseek-v3", rope("deepseek-v3", mscale=0.9), ""),
        ("gpt-oss", rope("gpt-oss", mscale=0.9), "has no effect beside 'attention_factor'"),
    ],
    "Yarn.mscale_all_dim": [
        ("deepseek-v3", rope("deepseek-v3", mscale_all_dim=0.5), ""),
        ("ministral3", rope("ministral3", mscale_all_dim=0.5), ""),
    ],
    "DynamicNTK.context": [  # plain positions within the context
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 177.0}}, "nothing"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 177.0}}
            | {"max_position_embeddings": 200},
            "",
        ),
    ],
    "LongRope.short": [
        ("phi3", rope("phi3", short_factor=[3.0, 4.0]), "nothing"),
        ("phi3", rope("phi3", short_factor=[3.0]), "1 and 2 factors"),
        (
            "phi3",
            rope("phi3", short_factor=[3.0, 4.0], original_max_position_embeddings=640)
            | {"original_max_position_embeddings": 640},
            "",
        ),
    ],
    "LongRope.long": [("phi3", rope("phi3", long_factor=[2.0, 6.0]), "")],
    "LongRope.original_context": [
        (
            "phi3",
            rope("phi3", original_max_position_embeddings=90) | {"original_max_position_embeddings": 90},
            "",
        ),
        ("phi3", rope("phi3", original_max_position_embeddings=90), "disagree"),
    ],
    "LongRope.attention_factor": [("phi3", rope("phi3", attention_factor=1.4), "")],
    "Mixture.networks": [("gpt-oss", {"num_local_experts": 4}, "shape"), ("llama4", {"num_local_experts": 6}, "shape")],
    "Mixture.active": [
        ("mixtral", {"num_experts_per_tok": 2}, ""),
        ("mixtral", {"num_experts_per_tok": 6}, "of 5 networks 6 cannot be active"),
        ("gpt-oss", {"num_experts_per_tok": 2}, ""),
        ("llama4", {"num_experts_per_tok": 1}, ""),
        ("deepseek-v2", {"num_experts_per_tok": 2}, ""),
        ("deepseek-v3", {"num_experts_per_tok": 5}, "5 active networks cannot be in 2 of 3 groups"),
    ],
    "Mixture.ff": [
        ("deepseek-v2", {"moe_intermediate_size": 12}, "shape"),
        ("llama4", {"intermediate_size": 24}, "shape"),
    ],
    "Mixture.scoring": [
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, "scoring_func='sigmoid'"),
    ],
    "Mixture.normalised": [
        ("deepseek-v3", {"norm_topk_prob": True}, ""),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob=True"),
    ],
    "Mixture.scale": [
        ("deepseek-v2", {"routed_scaling_factor": 1.0}, ""),
        ("deepseek-v3", {"routed_scaling_factor": 1.0}, ""),
    ],
    "Mixture.groups": [
        ("deepseek-v2", {"n_group": 2}, ""),
        ("deepseek-v2", {"topk_method": "greedy"}, ""),
        ("deepseek-v3", {"n_group": 1, "topk_group": 1}, ""),
        ("deepseek-v3", {"n_group": 4}, "cannot be in 4 groups"),
    ],
    "Mixture.active_groups": [("deepseek-v2", {"topk_group": 3}, ""), ("deepseek-v3", {"topk_group": 3}, "")],
    "Mixture.group_score": [("deepseek-v3", {"topk_method": "group_limited_greedy"}, "topk_method=")],
    "Mixture.bias": [("gpt-oss", {"model_type": "mixtral"}, "layers are alike")],
    "Mixture.on_input": [("llama4", {"model_type": "mixtral"}, "unknown tensor|not supported|transformers")],
    "Mixture.wide_router": [("deepseek-v2", {"model_type": "mixtral"}, "unknown tensor|shape|missing")],
    "Mixture.network_bias": [("gpt-oss", {"model_type": "mixtral"}, "layers are alike")],
    "Mixture.shared_ff": [
        ("deepseek-v2", {"n_shared_experts": 1}, "shape"),
        ("deepseek-v3", {"n_shared_experts": 0}, "'n_shared_experts' must be at least 1, got 0"),
    ],
    "Latent.rank": [("deepseek-v2", {"kv_lora_rank": 8}, "shape")],
    "Latent.query_rank": [
        ("deepseek-v3", {"q_lora_rank": 10}, "shape"),
        ("deepseek-v2", {"q_lora_rank": 20}, "unknown tensor|missing"),
    ],
    "Latent.plain": [("deepseek-v2", {"qk_nope_head_dim": 4}, "shape")],
    "Latent.rotary": [("deepseek-v2", {"qk_rope_head_dim": 4}, "shape")],
    "Latent.value": [("deepseek-v2", {"v_head_dim": 8}, "shape")],
    "Temperature.scale": [
        ("llama4", {"attn_scale": 0.2}, ""),
        ("ministral3", rope("ministral3", llama_4_scaling_beta=0.2), ""),
        ("ministral3", rope("ministral3", llama_4_scaling_beta=None), "'llama_4_scaling_beta' is missing"),
    ],
    "Temperature.span": [
        ("llama4", {"floor_scale": 60}, ""),
        ("ministral3", rope("ministral3", original_max_position_embeddings=90), ""),
    ],
}
# No config.json has these fields: each family has its own value, which the parity of logits holds.
OF_THE_FAMILY = {"Latent.rms_eps", "Temperature.offset", "Temperature.unrotated_only", "Mixture.shared_gate"}


def test_every_field_has_a_change():
    nested = (Rope, Bands, Yarn, DynamicNTK, LongRope, Mixture, Latent, Temperature)
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    fields |= {f"{kind.__name__}.{field.name}" for kind in nested for field in dataclasses.fields(kind)}
    assert set(CHANGES) | OF_THE_FAMILY == fields
    assert not set(CHANGES) & OF_THE_FAMILY


@pytest.mark.parametrize(
    ("name", "change", "effect"),
    [pytest.param(*case, id=f"{field}-{i}") for field, cases in CHANGES.items() for i, case in enumerate(cases)],
)
def test_changing_a_field_changes_the_output(name, change, effect, tmp_path, unchanged):
    directory = write_family(tmp_path / name, name)
    edit_json(directory / "config.json", **change)
    if effect not in ("", "nothing"):
        with pytest.raises(UserError, match=effect):
            load_model(directory, "float32", make_mesh())
        return
    difference = np.abs(logits(directory) - unchanged(name))
    if effect == "nothing":  # the context cuts texts; the network does not know it
        assert difference.max() == 0
    else:
        assert difference[FROM:].max() > 1e-3


# Every value of every family's config.json, changed by itself.
NO_EFFECT = {  # besides the id of padding
    ("deepseek-v2", "head_dim"),  # that of what turns, whatever the file says
    ("deepseek-v3", "head_dim"),
}


def leaves(fields, path=()):
    """Yield each value of nested fields, with its path."""
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def another(key, value):
    """Return a different value of the same type."""
    if key == "moe_layers":
        return [0, 3]
    if key == "mlp_only_layers":
        return [1]
    if key == "high_freq_factor":  # a little less is on the same side of the few pairs of dimensions
        return 1.3 * value
    match value:
        case None:
            return 5
        case bool():
            return not value
        case int():
            return value + max(1, value // 2)
        case float():
            return 0.7 * value
        case list():
            return [*value[1:], value[0]]
    return f"{value}, or another"


@pytest.mark.parametrize("name", CONFIGS)
def test_each_value_of_a_familys_config_counts(name):
    """It changes the configuration of the model, each field of which changes the logits (above), or is refused."""
    before = from_huggingface(CONFIGS[name], "config.json")
    for path, value in leaves(CONFIGS[name]):
        changed = copy.deepcopy(CONFIGS[name])
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        key = path[-1]
        inner[key] = another(key, value)
        try:
            found = from_huggingface(changed, "config.json")
        except UserError:
            continue
        harmless = key == "pad_token_id" or (name, key) in NO_EFFECT
        assert (found == before) == harmless, (path, value, inner[key])
