"""Fields of config.json: each is read, or is harmless, or is an error.

The reference's classes need no PyTorch. With PyTorch, transformers' logits show that the harmless fields are harmless.
"""

import importlib.util
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from colm_jax.checkpoints.families import FAMILIES, from_huggingface
from colm_jax.checkpoints.families.fields import CHANGES_NOTHING, REFUSED, Fields
from colm_jax.checkpoints.families.reference import reference_class
from colm_jax.cli.main import main
from colm_jax.errors import UserError
from tests.models.families import CONFIGS, parity_error, tokens, write_family
from tests.models.make_golden import transformers_logits
from tests.tiny import edit_json


def known_to(name):
    """Return every field that the reference's configuration class declares, with its default."""
    made = reference_class(CONFIGS[name]["model_type"])
    return {key: parameter.default for key, parameter in inspect.signature(made).parameters.items()}


def asked_for(name):
    """Return every field that the family reads."""
    fields = Fields(CONFIGS[name], "config.json")
    FAMILIES[fields.model_type].read(fields)
    return fields.read


def another(value):
    """Return a different value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return 2 * value + 1
        case str():
            return f"{value} of another kind"
        case list():
            return [*value[1:], "full_attention"]
        case dict():
            return {**value, "rope_theta": 12.5, "full_attention": None}
    return 3  # the default is null


_IDS = ("bos_token_id", "eos_token_id")  # must be in the vocabulary
_OVERRIDDEN = {  # field -> the field that goes first
    "interleave_moe_layer_step": "moe_layers",
    "no_rope_layer_interval": "no_rope_layers",
}
# Read, with no effect on the model: which stored tensors are left out; replaced by the class, whatever the file says.
_NO_EFFECT = {"deepseek_v3": {"num_mtp_layers"}, "deepseek_v2": {"head_dim"}}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_reference_field_changes_the_model_or_is_harmless_or_an_error(name):
    asked = asked_for(name)
    harmless = CHANGES_NOTHING | _NO_EFFECT.get(CONFIGS[name]["model_type"], set())
    for key, default in known_to(name).items():
        fields = {other: value for other, value in CONFIGS[name].items() if other != _OVERRIDDEN.get(key)}
        before = from_huggingface(fields, "config.json")
        changed = {**fields, key: 7 if key in _IDS else another(fields.get(key, default))}
        try:
            after = from_huggingface(changed, "config.json")
        except UserError as error:
            assert key not in CHANGES_NOTHING, key
            assert key in asked or key in str(error)
            continue
        assert (after == before) == (key in harmless), key
        assert (key in asked) != (key in CHANGES_NOTHING), key


# Fields that shared code of transformers reads, although no class of these families declares them.
_OF_OTHER_MODELS = {
    "image_token_id",  # Gemma 3 with images
    "mm_tokens_per_image",
    "vision_config",
    "image_size",  # the vision tower of Llama 4
    "multi_modal_projector_bias",
    "num_channels",
    "patch_size",
    "pixel_shuffle_ratio",
    "projector_dropout",
    "projector_input_dim",
    "projector_output_dim",
    "vision_feature_select_strategy",
    "vision_output_dim",
    "number_of_conv_states",  # layers other than attention
    "rope_theta",  # moved into rope_parameters by the constructor
    "partial_rotary_factor",
    "default_theta",  # attributes of the classes
    "block_size",
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_read_by_the_references_code_is_known(model_type):
    folder = model_type.removesuffix("_text")
    modules = [f"models.{folder}.modeling_{folder}", "masking_utils", "cache_utils", "modeling_rope_utils"]
    root = Path(importlib.util.find_spec("transformers").origin).parent
    text = "".join((root / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8") for module in modules)
    read = set(re.findall(r"config\.(?!json)([a-z_]\w*)", text)) | set(
        re.findall(r"attr\([\w.]*config, \"(\w+)\"", text)
    )
    made = reference_class(model_type)
    name = next(name for name, config in CONFIGS.items() if config["model_type"] == model_type)
    here = (
        set(known_to(name))
        | set(made.attribute_map)
        | asked_for(name)
        | CHANGES_NOTHING
        | set(REFUSED)
        | _OF_OTHER_MODELS
    )
    assert {key for key in read if key not in here and not hasattr(made, key)} == set()


UNKNOWN = {
    "unk_token_id": 3,
    "_model_name_or_path": "./merged",
    "padding_idx": 4,
    "mergekit": {"slices": [1, 2]},
    "rope_interleaved": True,
    "use_mrope": True,
    "is_decoder": False,
    "temperature": 0.6,
    "unsloth_version": "2026.1",
    "transformers.js_config": {"dtype": "q4"},
    "hidden_dropout": 0.1,
    "query_scale": float("nan"),
    "max_sequence_length": None,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_unknown_to_the_reference_change_nothing(name):
    expected = from_huggingface(CONFIGS[name], "config.json")
    assert from_huggingface({**CONFIGS[name], **UNKNOWN}, "config.json") == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_with_the_references_default_change_nothing(name):
    defaults = {key: value for key, value in known_to(name).items() if key not in {*asked_for(name), *_IDS}}
    expected = from_huggingface(CONFIGS[name], "config.json")
    assert from_huggingface({**CONFIGS[name], **defaults}, "config.json") == expected


def test_inspect_accepts_harmless_fields(tiny_model, capsys):
    directory, shown = tiny_model(), []
    for fields in {}, {**UNKNOWN, "pad_token_id": -1, "attention_dropout": 0.1, "pretraining_tp": 4}:
        edit_json(directory / "config.json", **fields)
        assert main(["inspect", str(directory)]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


# Errors: (family, field, value, the message besides the field and the value).
WRONG = [
    ("llama", "chunk_size_feed_forward", 4, "LlamaConfig uses it (its default is 0)"),
    ("qwen3", "is_encoder_decoder", True, "Qwen3Config uses it (its default is False)"),
    ("mixtral", "partial_rotary_factor", 0.5, "part of the head"),
    ("gemma3", "partial_rotary_factor", 0.5, "part of the head"),
    ("qwen3", "rope_type", "linear", None),
    ("deepseek-v2", "topk_method", "x" * 10**5, "is not supported, only greedy"),
    ("olmo3", "layer_types", ["x" * 10**5] * 4, "is not supported, only 'full_attention'"),
    ("mixtral", "num_experts", 8, "'num_local_experts' (5) disagree"),
    ("gemma2", "use_bidirectional_attention", True, "not supported, only False"),
    ("llama", "is_causal", False, "only causal attention"),
    ("mistral", "is_causal", None, "only causal attention"),
    ("llama", "add_cross_attention", True, "cross-attention"),
    ("llama", "transformers_weights", "other.safetensors", "rename that file"),
    ("llama", "per_layer_config", {"0": {"head_dim": 4}}, "layers that differ"),
    ("qwen3", "text_config", {"vocab_size": 3}, "nested configurations"),
    ("llama", "sliding_window", 50, "no sliding window"),
    ("llama", "layer_types", ["full_attention"] * 3 + ["sliding_attention"], "layers are alike"),
    ("mistral", "layer_types", ["full_attention"] * 4, "layers are alike"),
    ("mixtral", "attention_chunk_size", 50, "chunked attention"),
    ("qwen2", "kv_sharing_modes", ["reuse"] * 4, "share a KV cache"),
    ("qwen2", "max_window_layers", None, "is null"),
    ("llama", "tie_word_embeddings", None, "is null"),
    ("gemma3", "attn_logit_softcapping", 30.0, "not supported, only None"),
    ("gemma3", "sliding_window_pattern", 0, "at least 1"),
    ("llama", "eos_token_id", 61, "only 61 tokens"),
    ("gemma2", "bos_token_id", "2", "no token id"),
    ("llama", "problem_size", float("nan"), None),
    ("qwen2", "rope_local_base_freq", 5.0, None),
    ("llama", "layer_types", ["full_attention"] * 4, None),
    ("mistral", "layer_types", ["sliding_attention"] * 4, None),
    ("mixtral", "num_experts", 5, None),
    ("llama", "is_causal", True, None),
    ("llama", "quantization_config", None, None),
    ("gemma2", "original_max_position_embeddings", 7, None),
]


@pytest.mark.parametrize(("name", "key", "value", "reason"), WRONG)
def test_field_that_could_matter_is_an_error_that_names_it(name, key, value, reason):
    changed = {**CONFIGS[name], key: value}
    if reason is None:
        assert from_huggingface(changed, "config.json") == from_huggingface(CONFIGS[name], "config.json")
        return
    with pytest.raises(UserError, match=r"^config\.json: ") as caught:
        from_huggingface(changed, "config.json")
    message = str(caught.value)
    assert key in message
    assert reason in message
    assert "\n" not in message


def test_value_invalid_in_the_reference_is_a_one_line_error():
    with pytest.raises(
        UserError, match=r"^config\.json: field '__class__' is 'x', which .* LlamaConfig rejects: [^\n]+$"
    ):
        from_huggingface({**CONFIGS["llama"], "__class__": "x"}, "config.json")


def test_layer_pattern_unused_by_the_reference_is_an_error():
    config = {key: value for key, value in CONFIGS["gemma3"].items() if key != "layer_types"}
    six = from_huggingface(config, "config.json")
    assert from_huggingface({**config, "_sliding_window_pattern": 6}, "config.json") == six
    assert from_huggingface({**CONFIGS["gemma3"], "_sliding_window_pattern": 3}, "config.json").depth == 4
    with pytest.raises(UserError, match=r"'_sliding_window_pattern' is 3.*name it 'sliding_window_pattern'"):
        from_huggingface({**config, "_sliding_window_pattern": 3}, "config.json")


# Numerically.


HARMLESS = {
    "architectures": ["LlamaForSequenceClassification"],
    "attention_dropout": 0.5,
    "bos_token_id": 7,
    "embd_pdrop": 0.5,
    "eos_token_id": [8, 9],
    "id2label": {"0": "no", "1": "yes", "2": "perhaps"},
    "initializer_range": 0.9,
    "label2id": {"no": 0, "yes": 1, "perhaps": 2},
    "output_router_logits": True,
    "pad_token_id": 5,
    "pretraining_tp": 3,
    "problem_type": "regression",
    "resid_pdrop": 0.5,
    "router_aux_loss_coef": 0.7,
    "router_jitter_noise": 0.4,
    "transformers_version": "4.31.0",
    "use_cache": False,
}
_TECHNICAL = {"dtype", "output_hidden_states", "return_dict"}  # how transformers computes and returns


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_transformers_do_not_depend_on_harmless_fields(name, tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch")
    assert (known_to(name).keys() & CHANGES_NOTHING) - _TECHNICAL <= HARMLESS.keys()
    directory = write_family(tmp_path / name, name)
    before = transformers_logits(directory, tokens()[:80])
    edit_json(directory / "config.json", **UNKNOWN, **HARMLESS)
    np.testing.assert_array_equal(transformers_logits(directory, tokens()[:80]), before)


_OLD_GEMMA3 = {"rope_theta": 900.0, "rope_local_base_freq": 50.0, "rope_parameters": None}
SPELLINGS = [
    ("llama", {"rope_parameters": None, "rope_theta": 30.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("llama-3", {"original_max_position_embeddings": 150}),
    ("mistral", {"sliding_window": None, "layer_types": None}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": None}),
    ("gemma3", {**_OLD_GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 3.0}, "layer_types": None}),
]


@pytest.mark.parametrize(("name", "change"), SPELLINGS)
def test_alternative_spelling_gives_transformers_the_same_model(name, change, tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch")
    directory = write_family(tmp_path / name, name, **change)  # None omits a field
    assert parity_error(directory, transformers_logits(directory, tokens()), np.arange(len(tokens()))) < 1e-4


def test_networks_of_all_layers_are_limited():
    config = {**CONFIGS["qwen3-moe"], "num_hidden_layers": 10_000, "num_experts": 10_000}
    with pytest.raises(
        UserError, match=r"9999 layers of 10000 networks each; .* at most 200000 networks are supported"
    ):
        from_huggingface(config, "config.json")


@pytest.mark.parametrize(
    ("name", "key"), [("llama", "rms_norm_eps"), ("gemma2", "attn_logit_softcapping"), ("llama4", "attn_scale")]
)
@pytest.mark.parametrize("value", [1e-40, 1e300])
def test_number_beyond_float32_is_an_error(name, key, value):
    with pytest.raises(
        UserError,
        match=rf"^config\.json: model config: .* must be from 1\.18e-38 to 3\.4e\+38 .*{re.escape(repr(value))}",
    ):
        from_huggingface({**CONFIGS[name], key: value}, "config.json")
