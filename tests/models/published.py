"""The config.json fields of published checkpoints, and what they mean."""

# config.json as the Hub has it: the fields of published checkpoints, most of which change nothing.
COMMON = {
    "architectures": ["X"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
}
LLAMA_2 = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
PUBLISHED = {
    "Llama-2-7b": (LLAMA_2, {"rope.theta": 10000.0, "kv_heads": 32}),
    "Llama-2-70b": (
        {**LLAMA_2, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
        | {"num_hidden_layers": 80, "num_key_value_heads": 8},
        {"head_dim": 128, "kv_heads": 8},
    ),
    "meditron-7b": ({**LLAMA_2, "vocab_size": 32017, "rope_theta": 10000.0}, {"vocab_size": 32017}),
    "llemma_7b": ({**LLAMA_2, "vocab_size": 32016, "rope_theta": 1000000}, {"rope.theta": 1e6, "vocab_size": 32016}),
    "Llama-3.1-8B": (
        {**LLAMA_2, "attention_bias": False, "mlp_bias": False, "num_key_value_heads": 8, "rope_theta": 500000.0}
        | {"max_position_embeddings": 131072, "vocab_size": 128256}
        | {
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            }
        },
        {"rope.factor": 8.0, "rope.scaling.original_context": 8192},
    ),
    "Mistral-7B-v0.1": (
        {key: value for key, value in LLAMA_2.items() if key not in ("pretraining_tp", "rope_scaling")}
        | {"model_type": "mistral", "rope_theta": 10000.0, "sliding_window": 4096, "num_key_value_heads": 8},
        {"windows": (4096,) * 32},
    ),
    "Mistral-7B-v0.3": (
        {**LLAMA_2, "model_type": "mistral", "rope_theta": 1e6, "sliding_window": None, "vocab_size": 32768},
        {"windows": None},
    ),
    "Mixtral-8x7B": (
        {**LLAMA_2, "model_type": "mixtral", "rope_theta": 1e6, "sliding_window": None, "num_experts_per_tok": 2}
        | {"num_local_experts": 8, "output_router_logits": False, "router_aux_loss_coef": 0.02},
        {"mixture.networks": 8, "mixture.active": 2},
    ),
    "Qwen2.5-7B": (
        {**LLAMA_2, "model_type": "qwen2", "rope_theta": 1e6, "sliding_window": 131072, "use_sliding_window": False}
        | {"max_window_layers": 28, "use_mrope": False, "vocab_size": 152064},
        {"windows": None, "qkv_bias": True, "out_bias": False},
    ),
    "Qwen3-8B": (
        {**LLAMA_2, "model_type": "qwen3", "rope_theta": 1e6, "sliding_window": None, "use_sliding_window": False}
        | {"max_window_layers": 36, "attention_bias": False, "head_dim": 64},
        {"head_dim": 64, "qk_norm": "head"},
    ),
    "gemma-2-2b": (
        {
            "model_type": "gemma2",
            "attn_logit_softcapping": 50.0,
            "attention_bias": False,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "max_position_embeddings": 8192,
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "sliding_window_size": 4096,
            "vocab_size": 256000,
        },
        {"tied": True, "windows": (4096, None) * 13, "logit_softcap": 30.0},
    ),
    "gemma-3-1b": (
        {
            "model_type": "gemma3_text",
            "attn_logit_softcapping": None,
            "attention_bias": False,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": None,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "max_position_embeddings": 32768,
            "num_attention_heads": 4,
            "num_hidden_layers": 26,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "vocab_size": 262144,
        },
        {"rope.theta": 1e6, "window_rope.theta": 1e4, "windows": (((512,) * 5 + (None,)) * 5)[:26], "tied": True},
    ),
}

# Newer families. Phi-4, GLM-4, Ministral-3 and Devstral-2 are put together from several places, and were not compared
# with the files themselves.
_PHI3_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
_PHI3 = {
    "model_type": "phi3",
    "attention_bias": False,
    "auto_map": _PHI3_CODE,
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
_PHI_35_LONG = """
1.0800000429153442 1.1100000143051147 1.1399999856948853 1.340000033378601 1.5899999141693115 1.600000023841858
1.6200000047683716 2.620000123977661 3.2300000190734863 3.2300000190734863 4.789999961853027 7.400000095367432
7.700000286102295 9.09000015258789 12.199999809265137 17.670000076293945 24.46000099182129 28.57000160217285
30.420001983642578 30.840002059936523 32.590003967285156 32.93000411987305 42.320003509521484 44.96000289916992
50.340003967285156 50.45000457763672 57.55000305175781 57.93000411987305 58.21000289916992 60.1400032043457
62.61000442504883 62.62000274658203 62.71000289916992 63.1400032043457 63.1400032043457 63.77000427246094
63.93000411987305 63.96000289916992 63.970001220703125 64.02999877929688 64.06999969482422 64.08000183105469
64.12000274658203 64.41000366210938 64.4800033569336 64.51000213623047 64.52999877929688 64.83999633789062
"""
_PHI_35_SHORT = """
1.0 1.0199999809265137 1.0299999713897705 1.0299999713897705 1.0499999523162842 1.0499999523162842 1.0499999523162842
1.0499999523162842 1.0499999523162842 1.0699999332427979 1.0999999046325684 1.1099998950958252 1.1599998474121094
1.1599998474121094 1.1699998378753662 1.2899998426437378 1.339999794960022 1.679999828338623 1.7899998426437378
1.8199998140335083 1.8499997854232788 1.8799997568130493 1.9099997282028198 1.9399996995925903 1.9899996519088745
2.0199997425079346 2.0199997425079346 2.0199997425079346 2.0199997425079346 2.0199997425079346 2.0199997425079346
2.0299997329711914 2.0299997329711914 2.0299997329711914 2.0299997329711914 2.0299997329711914 2.0299997329711914
2.0299997329711914 2.0299997329711914 2.0299997329711914 2.0799996852874756 2.0899996757507324 2.189999580383301
2.2199995517730713 2.5899994373321533 2.729999542236328 2.749999523162842 2.8399994373321533
"""
_PHI_4_LONG = """
1 1.118320672 1.250641126 1.398617824 1.564103225 1.74916897 1.956131817 2.187582649 2.446418898 2.735880826
3.059592084 3.421605075 3.826451687 4.279200023 4.785517845 5.351743533 5.984965424 6.693110555 7.485043894 8.370679318
9.36110372 10.4687158 11.70738129 13.09260651 14.64173252 16.37415215 18.31155283 20.47818807 22.90118105 25.61086418
28.64115884 32.03 32.1 32.13 32.23 32.6 32.61 32.64 32.66 32.7 32.71 32.93 32.97 33.28 33.49 33.5 44.16 47.77
"""


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split()]


_YARN_OLMO3 = {
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "yarn",
}
_GPT_OSS = {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_key_value_heads": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
_EVERY_FOURTH = [1, 1, 1, 0]
PUBLISHED |= {
    "Phi-3-mini-4k": (_PHI3, {"windows": (2047,) * 32, "rope.scaling": None, "head_dim": 96}),
    "Phi-3.5-mini": (
        {**_PHI3, "max_position_embeddings": 131072, "sliding_window": 262144}
        | {"auto_map": {key: f"microsoft/Phi-3.5-mini-instruct--{value}" for key, value in _PHI3_CODE.items()}}
        | {
            "rope_scaling": {
                "long_factor": _numbers(_PHI_35_LONG),
                "short_factor": _numbers(_PHI_35_SHORT),
                "type": "longrope",
            }
        },
        {"rope.factor": 32.0, "rope.scaling.original_context": 4096, "rope.dim": None, "windows": (262144,) * 32},
    ),
    "Phi-4": (
        {key: value for key, value in _PHI3.items() if key != "auto_map"}
        | {"hidden_size": 5120, "intermediate_size": 17920, "max_position_embeddings": 16384, "vocab_size": 100352}
        | {"num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 10, "rope_theta": 250000.0}
        | {"original_max_position_embeddings": 16384, "sliding_window": None},
        {"windows": None, "rope.theta": 250000.0, "head_dim": 128},
    ),
    "Phi-4-mini": (
        {**_PHI3, "auto_map": {**_PHI3_CODE, "AutoTokenizer": "Xenova/gpt-4o"}, "max_position_embeddings": 131072}
        | {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "vocab_size": 200064}
        | {"num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "sliding_window": 262144}
        | {"tie_word_embeddings": True}
        | {
            "rope_scaling": {
                "long_factor": _numbers(_PHI_4_LONG),
                "short_factor": [1.0] * 48,
                "type": "longrope",
            }
        },
        {"rope.dim": 96, "head_dim": 128, "rope.factor": 32.0, "tied": True},
    ),
    "OLMo-2-1124-7B": (
        {
            "model_type": "olmo2",
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 500000,
            "tie_word_embeddings": False,
            "vocab_size": 100352,
        },
        {"rope.theta": 500000.0, "qk_norm": "joint", "pre_norm": False, "post_norm": True},
    ),
    "Olmo-3-7B": (
        {
            "model_type": "olmo3",
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "layer_types": ([*["sliding_attention"] * 3, "full_attention"]) * 8,
            "max_position_embeddings": 65536,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-06,
            "rope_scaling": _YARN_OLMO3,
            "rope_theta": 500000,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 100278,
        },
        {"windows": (4096, 4096, 4096, None) * 8, "window_rope.theta": 500000.0, "window_rope.scaling": None}
        | {"rope.factor": 8.0, "rope.scaling.attention_factor": 1.2079441541679836},
    ),
    "SmolLM3-3B": (
        {
            "model_type": "smollm3",
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "max_position_embeddings": 65536,
            "max_window_layers": 36,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": _EVERY_FOURTH * 9,
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
            "num_key_value_heads": 4,
            "pretraining_tp": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 128256,
        },
        {"rope_layers": (True, True, True, False) * 9, "windows": None, "rope.theta": 5e6, "tied": True},
    ),
    "granite-3.3-8b": (
        {
            "model_type": "granite",
            "attention_bias": False,
            "attention_multiplier": 0.0078125,
            "embedding_multiplier": 12.0,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 12800,
            "logits_scaling": 16.0,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "residual_multiplier": 0.22,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000000.0,
            "tie_word_embeddings": True,
            "vocab_size": 49159,
        },
        {"attention_multiplier": 0.0078125, "embedding_multiplier": 12.0, "logit_divisor": 16.0}
        | {"residual_multiplier": 0.22, "rope.theta": 1e7},
    ),
    "GLM-4-9B-0414": (
        {
            "model_type": "glm4",
            "attention_bias": True,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": 151552,
        },
        {"rope.dim": 64, "rope.interleaved": True, "qkv_bias": True, "out_bias": False, "post_norm": True},
    ),
    "gpt-oss-20b": (
        {**_GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32}
        | {"layer_types": ["sliding_attention", "full_attention"] * 12},
        {"windows": (128, None) * 12, "mixture.networks": 32, "mixture.active": 4, "rope.scaling.truncate": False},
    ),
    "gpt-oss-120b": (
        {**_GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128}
        | {"layer_types": ["sliding_attention", "full_attention"] * 18},
        {"mixture.networks": 128, "activation_limit": 7.0, "activation_slope": 1.702, "sinks": True},
    ),
    "gemma-3-4b": (
        {
            "model_type": "gemma3",
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "image_token_index": 262144,
            "mm_tokens_per_image": 256,
            "text_config": {
                "attention_bias": False,
                "attention_dropout": 0.0,
                "attn_logit_softcapping": None,
                "cache_implementation": "hybrid",
                "final_logit_softcapping": None,
                "head_dim": 256,
                "hidden_activation": "gelu_pytorch_tanh",
                "hidden_size": 2560,
                "initializer_range": 0.02,
                "intermediate_size": 10240,
                "max_position_embeddings": 131072,
                "model_type": "gemma3_text",
                "num_attention_heads": 8,
                "num_hidden_layers": 34,
                "num_key_value_heads": 4,
                "query_pre_attn_scalar": 256,
                "rms_norm_eps": 1e-06,
                "rope_local_base_freq": 10000.0,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "rope_theta": 1000000.0,
                "sliding_window": 1024,
                "sliding_window_pattern": 6,
                "use_cache": True,
                "vocab_size": 262208,
            },
            "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
        },
        {"family": "gemma3_text", "rope.factor": 8.0, "window_rope.factor": 1.0, "tied": True}
        | {"windows": (((1024,) * 5 + (None,)) * 6)[:34]},
    ),
    "Mistral-Small-3.1-24B": (
        {
            "model_type": "mistral3",
            "image_token_index": 10,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu",
            "spatial_merge_size": 2,
            "text_config": {
                "attention_dropout": 0.0,
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 5120,
                "initializer_range": 0.02,
                "intermediate_size": 32768,
                "max_position_embeddings": 131072,
                "model_type": "mistral",
                "num_attention_heads": 32,
                "num_hidden_layers": 40,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_theta": 1000000000.0,
                "sliding_window": None,
                "use_cache": True,
                "vocab_size": 131072,
            },
            "vision_config": {"hidden_size": 1024, "model_type": "pixtral"},
            "vision_feature_layer": -1,
        },
        {"family": "mistral", "rope.theta": 1e9, "head_dim": 128, "windows": None, "tied": False},
    ),
    "Ministral-3-3B": (
        {
            "model_type": "mistral3",
            "image_token_index": 10,
            "text_config": {
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 3072,
                "intermediate_size": 9216,
                "max_position_embeddings": 262144,
                "model_type": "ministral3",
                "num_attention_heads": 32,
                "num_hidden_layers": 26,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_parameters": {
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "factor": 16.0,
                    "llama_4_scaling_beta": 0.1,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "original_max_position_embeddings": 16384,
                    "rope_theta": 1000000.0,
                    "rope_type": "yarn",
                    "type": "yarn",
                },
                "sliding_window": None,
                "tie_word_embeddings": True,
                "vocab_size": 131072,
            },
            "vision_config": {"hidden_size": 1024, "model_type": "pixtral"},
        },
        {"family": "ministral3", "temperature.scale": 0.1, "temperature.span": 16384, "tied": True},
    ),
    "Devstral-2-123B": (
        {
            "model_type": "ministral3",
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 12288,
            "intermediate_size": 28672,
            "max_position_embeddings": 262144,
            "num_attention_heads": 96,
            "num_hidden_layers": 88,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {
                "beta_fast": 4.0,
                "beta_slow": 1.0,
                "factor": 64.0,
                "llama_4_scaling_beta": 0.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.0,
                "original_max_position_embeddings": 4096,
                "rope_theta": 1000000.0,
                "rope_type": "yarn",
                "type": "yarn",
            },
            "sliding_window": None,
            "tie_word_embeddings": False,
            "vocab_size": 131072,
        },
        {"temperature.scale": 0.0, "rope.scaling.mscale": None, "rope.factor": 64.0},
    ),
    "Llama-4-Scout": (
        {
            "model_type": "llama4",
            "boi_token_index": 200080,
            "eoi_token_index": 200081,
            "image_token_index": 200092,
            "text_config": {
                "attention_bias": False,
                "attention_chunk_size": 8192,
                "attention_dropout": 0.0,
                "attn_scale": 0.1,
                "attn_temperature_tuning": 4,
                "bos_token_id": 200000,
                "eos_token_id": [200001, 200007, 200008],
                "floor_scale": 8192,
                "for_llm_compressor": False,
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 5120,
                "initializer_range": 0.02,
                "interleave_moe_layer_step": 1,
                "intermediate_size": 8192,
                "intermediate_size_mlp": 16384,
                "max_position_embeddings": 262144,
                "model_type": "llama4_text",
                "moe_layers": list(range(48)),
                "no_rope_layers": _EVERY_FOURTH * 12,
                "num_attention_heads": 40,
                "num_experts_per_tok": 1,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
                "num_local_experts": 16,
                "output_router_logits": False,
                "pad_token_id": 200018,
                "rms_norm_eps": 1e-05,
                "rope_scaling": {
                    "factor": 8.0,
                    "high_freq_factor": 4.0,
                    "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192,
                    "rope_type": "llama3",
                },
                "rope_theta": 500000.0,
                "router_aux_loss_coef": 0.001,
                "router_jitter_noise": 0.0,
                "use_cache": True,
                "use_qk_norm": True,
                "vocab_size": 202048,
            },
            "tie_word_embeddings": False,
            "vision_config": {"hidden_size": 1408, "model_type": "llama4_vision_model"},
        },
        {"family": "llama4_text", "temperature.span": 8192, "mixtures": (True,) * 48, "mixture.networks": 16}
        | {"windows": (8192, 8192, 8192, None) * 12, "rope_layers": (True, True, True, False) * 12},
    ),
    "DeepSeek-V2-Lite": (
        {
            "model_type": "deepseek_v2",
            "attention_bias": False,
            "auto_map": {
                "AutoConfig": "configuration_deepseek.DeepseekV2Config",
                "AutoModel": "modeling_deepseek.DeepseekV2Model",
                "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM",
            },
            "aux_loss_alpha": 0.001,
            "ep_size": 1,
            "first_k_dense_replace": 1,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "kv_lora_rank": 512,
            "max_position_embeddings": 163840,
            "moe_intermediate_size": 1408,
            "moe_layer_freq": 1,
            "n_group": 1,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "num_attention_heads": 16,
            "num_experts_per_tok": 6,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "pretraining_tp": 1,
            "q_lora_rank": None,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
            "rope_theta": 10000,
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
            "seq_aux": True,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "topk_method": "greedy",
            "v_head_dim": 128,
            "vocab_size": 102400,
        },
        {"latent.rank": 512, "latent.query_rank": None, "mixture.shared_ff": 2816, "mixture.normalised": False}
        | {"mixtures": (False, *(True,) * 26), "rope.interleaved": True, "head_dim": 192},
    ),
    "DeepSeek-V3": (
        {
            "model_type": "deepseek_v3",
            "attention_bias": False,
            "auto_map": {
                "AutoConfig": "configuration_deepseek.DeepseekV3Config",
                "AutoModel": "modeling_deepseek.DeepseekV3Model",
                "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
            },
            "ep_size": 1,
            "first_k_dense_replace": 3,
            "hidden_act": "silu",
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "kv_lora_rank": 512,
            "max_position_embeddings": 163840,
            "moe_intermediate_size": 2048,
            "moe_layer_freq": 1,
            "n_group": 8,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 61,
            "num_key_value_heads": 128,
            "num_nextn_predict_layers": 1,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
            "rope_theta": 10000,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "tie_word_embeddings": False,
            "topk_group": 4,
            "topk_method": "noaux_tc",
            "v_head_dim": 128,
            "vocab_size": 129280,
        },
        {"latent.query_rank": 1536, "mixture.scale": 2.5, "mixture.groups": 8, "mixture.active_groups": 4}
        | {"mixture.bias": "choice", "mixtures": (False,) * 3 + (True,) * 58, "rope.interleaved": True},
    ),
}
