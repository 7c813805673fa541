"""What is wrong with a quantised checkpoint is one line that names the file, the tensor or key, and the remedy."""

import json

import numpy as np
import pytest

from colm_jax.checkpoints.huggingface import load_model, match_tensors, read_config
from colm_jax.checkpoints.quantized.scheme import read_scheme
from colm_jax.errors import UserError
from tests.checkpoints.quantized import packers
from tests.checkpoints.quantized.checkpoints import FORMATS, compressed, gpt_oss, quantized
from tests.models.families import CONFIGS

_GATE = "model.layers.1.mlp.gate_proj."


def changed(directory, change, settings=None):
    """The checkpoint with its tensors changed in place by `change`, and with other settings."""
    tensors = packers.read(directory)
    change(tensors)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] |= settings or {}
    return packers.write(directory, config, tensors)


def remove(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    def change(tensors):
        tensors[name] = value(tensors[name])

    return change


def first(number):
    def change(values):
        values = values.copy()
        values.flat[0] = number
        return values

    return change


ENDS = {
    "awq": ("qweight", "qzeros", "scales"),
    "gptq act-order": ("qweight", "qzeros", "scales", "g_idx"),
    "pack-quantized with zeros": ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"),
}


@pytest.mark.parametrize("name,end", [(name, end) for name, ends in ENDS.items() for end in ends])
def test_a_missing_piece_is_named(name, end, tmp_path):
    directory = changed(quantized(name, tmp_path)[0], remove(_GATE + end))
    with pytest.raises(UserError, match=f"model.safetensors: tensor '{_GATE}{end}' is missing; .* needs it beside"):
        match_tensors(directory)


def _fp8(directory, change):
    """An FP8 checkpoint with its scales changed."""
    settings, pack = FORMATS["deepseek"]
    _, plain = quantized("deepseek", directory)
    tensors = packers.read(plain)
    weight = tensors.pop(_GATE + "weight")
    pieces, _ = pack(weight)
    change(pieces)
    tensors |= {_GATE + end: value for end, value in pieces.items()}
    return packers.write(directory / "changed", {**CONFIGS["llama"], "quantization_config": settings}, tensors)


FP8_FAULTS = {
    "no scales": (lambda p: p.pop("weight_scale_inv"), r"'model.layers.1.mlp.gate_proj.weight_scale_inv' is missing"),
    "infinite scale": (lambda p: p["weight_scale_inv"].__setitem__((0, 0), np.inf), "holds NaN or infinite scales"),
    "scales of another shape": (
        lambda p: p.__setitem__("weight_scale_inv", p["weight_scale_inv"][:1]),
        r"has shape \[1, 2\], expected \[3, 2\] \(one scale a block of \[32, 32\]",
    ),
    "NaN code": (lambda p: p["weight"].view(np.uint8).__setitem__((0, 0), 127), "holds NaN values"),
    "no weight": (lambda p: p.pop("weight"), "tensor 'model.layers.1.mlp.gate_proj.weight' is missing"),
}


@pytest.mark.parametrize("name", FP8_FAULTS)
def test_fp8_faults(name, tmp_path, mesh):
    change, message = FP8_FAULTS[name]
    with pytest.raises(UserError, match=message):
        load_model(_fp8(tmp_path, change), "float32", mesh, packed=True)


# format, change, settings, message
FAULTS = {
    "scales NaN": ("awq", put(_GATE + "scales", first(np.nan)), {}, "gate_proj.scales' holds NaN or infinite scales"),
    "scales infinite": ("gptq", put(_GATE + "scales", first(np.inf)), {}, "gate_proj.scales' holds NaN or infinite"),
    "scales cut": ("awq", put(_GATE + "scales", lambda v: v[:1]), {}, r"shape \[1, 72\], expected \[2, 72\]"),
    "weights beyond the type": (
        "int-quantized",
        put(_GATE + "weight_scale", lambda v: np.full_like(v, 1e37)),
        {},
        r"gate_proj.weight' holds NaN or infinite values \(read as float32\)",
    ),
    "zeros cut": ("gptq", put(_GATE + "qzeros", lambda v: v[:, :2]), {}, r"shape \[2, 2\], expected \[2, 9\]"),
    "words of floats": (
        "awq",
        put(_GATE + "qweight", lambda v: v.astype(np.float32)),
        {},
        "has type float32, expected int32",
    ),
    "words in one axis": ("gptq", put(_GATE + "qweight", np.ravel), {}, r"has shape \[432\], expected two axes"),
    "fewer inputs": ("awq", put(_GATE + "qweight", lambda v: v[:24]), {}, r"expected \[1, 9\]"),
    "group out of range": (
        "gptq act-order",
        put(_GATE + "g_idx", first(9)),
        {},
        "names group 9; the groups are 0 to 1",
    ),
    "negative group": ("gptq act-order", put(_GATE + "g_idx", first(-1)), {}, "names group -1; the groups are 0 to 1"),
    "uneven groups": (
        "gptq act-order",
        put(_GATE + "g_idx", np.zeros_like),
        {},
        "has 48 inputs in group 0; group_size is 24",
    ),
    "order that is none": (
        "gptq act-order",
        lambda t: None,
        {"desc_act": False},
        "is not in order, but config.json says",
    ),
    "group size 0": ("awq", lambda t: None, {"group_size": 0}, "group_size 0: must be a number of inputs, or -1"),
    "group size below 0": ("gptq", lambda t: None, {"group_size": -24}, "group_size -24: must be a number of inputs"),
    "group size that does not divide": (
        "awq",
        lambda t: None,
        {"group_size": 10},
        "inputs, which groups of 10 .* do not divide",
    ),
    "huge group size": (
        "gptq",
        lambda t: None,
        {"group_size": 10**12},
        "which groups of 1000000000000 .* do not divide",
    ),
    "group size as text": ("awq", lambda t: None, {"group_size": "24"}, "group_size '24': must be a whole number"),
    "3 bits": ("gptq", lambda t: None, {"bits": 3}, "bits 3: GPTQ is read in 4 and 8 bits only"),
    "gemv": ("awq", lambda t: None, {"version": "gemv"}, "version 'gemv': only 'gemm' is supported"),
    "marlin": ("gptq", lambda t: None, {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin': only 'gptq'"),
    "shape that lies": (
        "pack-quantized",
        put(_GATE + "weight_shape", first(2**40)),
        {},
        r"weight_shape' says \[1099511627776, 48\]",
    ),
    "listed as plain": (
        "awq",
        lambda t: None,
        {"modules_to_not_convert": ["gate_proj"]},
        "gate_proj' is quantised .*, but config.json lists it among the modules that are not",
    ),
    "stored twice": (
        "awq",
        lambda t: t.__setitem__(_GATE + "weight", np.zeros((72, 48), np.float32)),
        {},
        "gate_proj.weight' is stored twice",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, tmp_path, mesh):
    name, change, settings, message = FAULTS[fault]
    directory = changed(quantized(name, tmp_path)[0], change, settings)
    with pytest.raises(UserError, match=message) as error:
        load_model(directory, "float32", mesh, packed=True)
    assert "\n" not in str(error.value)


def test_a_truncated_file(tmp_path, mesh):
    file = quantized("awq", tmp_path)[0] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        load_model(file.parent, "float32", mesh, packed=True)


def test_mxfp4_faults(tmp_path, mesh):
    directory = gpt_oss(tmp_path)[0]
    name = "model.layers.0.mlp.experts.down_proj_"
    changed(directory, put(name + "scales", first(255)))
    with pytest.raises(UserError, match="down_proj_scales' holds NaN scales"):
        load_model(directory, "float32", mesh, packed=True)
    changed(directory, put(name + "scales", lambda v: v[:, :1]))
    with pytest.raises(UserError, match="down_proj_scales' has shape"):
        match_tensors(directory)
    changed(directory, remove(name + "scales"))
    with pytest.raises(UserError, match="down_proj_scales' is missing; MXFP4 needs it"):
        match_tensors(directory)


def test_modules_that_are_plain_are_read_as_such(tmp_path, mesh):
    directory, plain = quantized("awq", tmp_path)
    weight = packers.read(plain)[_GATE + "weight"]

    def change(tensors):
        for end in ENDS["awq"]:
            tensors.pop(_GATE + end)
        tensors[_GATE + "weight"] = weight

    changed(directory, change, {"modules_to_not_convert": ["layers.1.mlp.gate_proj"]})
    assert len(match_tensors(directory)) == len(match_tensors(plain))
    load_model(directory, "float32", mesh, packed=True)


REFUSED = {
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "only its CUDA library defines; use the unq",
    ),
    "bitsandbytes of old": ({"load_in_8bit": True}, "only its CUDA library defines"),
    "hqq": ({"quant_method": "hqq"}, "quant_method 'hqq': .*; use the unquantised checkpoint"),
    "unknown": ({"quant_method": "magic"}, "quant_method 'magic': only awq, gptq, fp8, .* are supported"),
    "no method": ({"bits": 4}, "quant_method None: only awq"),
    "a list": ([1], "'quantization_config' has a wrong type"),
    "method as a list": ({"quant_method": ["awq"]}, "only awq, gptq"),
    "nvfp4": (compressed("nvfp4-pack-quantized", num_bits=4, type="float"), "format 'nvfp4-pack-quantized': only"),
    "two kinds of groups": (
        {
            **compressed("pack-quantized", num_bits=4, strategy="channel"),
            "config_groups": {"a": {"weights": {"num_bits": 4}}, "b": {"weights": {"num_bits": 8}}},
        },
        "groups that differ in their weights",
    ),
    "sparse": (
        {**compressed("float-quantized", num_bits=8, type="float"), "sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparse weights are not supported",
    ),
    "format as a list": (
        {**compressed("float-quantized", num_bits=8, type="float"), "format": ["float-quantized"]},
        r"format \['float-quantized'\]: only",
    ),
    "block of 0": ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "must be two whole numbers from 1"),
    "block of one": ({"quant_method": "fp8", "weight_block_size": [128]}, "must be two whole numbers from 1"),
    "pattern": ({"quant_method": "awq", "bits": 4, "group_size": 8, "modules_to_not_convert": ["("]}, "not a regular"),
    "names": ({"quant_method": "mxfp4", "modules_to_not_convert": "lm_head"}, "must be a list of names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_methods_are_refused_before_any_weight_is_read(name, tmp_path):
    settings, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        read_scheme({"quantization_config": settings}, "config.json")
    config = {**CONFIGS["llama"], "quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))  # no weights beside it
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_no_settings_is_no_scheme():
    assert read_scheme({}, "config.json") is None
    assert read_scheme({"quantization_config": None}, "config.json") is None
