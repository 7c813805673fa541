"""Tiny models in every quantised format, and the same models with the weights that the codes stand for."""

import re
from functools import partial

import ml_dtypes
import numpy as np

from tests.checkpoints.quantized import packers
from tests.models.families import CONFIGS, weights

LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn|mlp|block_sparse_moe)\..*(proj|w1|w2|w3)\.weight")


def compressed(form, **args):
    group = {"targets": ["Linear"], "weights": {"dynamic": False, "symmetric": True, **args}}
    groups = {"group_0": group}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


_GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": False}
_GROUP = {"strategy": "group", "group_size": 24, "type": "int"}
_FP8 = {"num_bits": 8, "type": "float"}

# name -> quantization_config, packer of a weight [out, in]
FORMATS = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 24, "version": "gemm"}, partial(packers.awq, group=24)),
    "awq whole": (
        {"quant_method": "awq", "bits": 4, "group_size": -1, "zero_point": True},
        lambda w: packers.awq(w, w.shape[1]),
    ),
    "awq part of a head": (
        {"quant_method": "awq", "bits": 4, "group_size": 6, "version": "GEMM"},
        partial(packers.awq, group=6),
    ),
    "gptq": ({**_GPTQ, "group_size": 24}, partial(packers.gptq, group=24)),
    "gptq v2": (
        {**_GPTQ, "group_size": 12, "sym": True, "checkpoint_format": "gptq_v2"},
        partial(packers.gptq, group=12, symmetric=True, less_one=False),
    ),
    "gptq symmetric": ({**_GPTQ, "group_size": 24, "sym": True}, partial(packers.gptq, group=24, symmetric=True)),
    "gptq act-order": (
        {**_GPTQ, "group_size": 24, "desc_act": True},
        partial(packers.gptq, group=24, act_order=True),
    ),
    "gptq 8 bits": ({**_GPTQ, "bits": 8, "group_size": 24}, partial(packers.gptq, group=24, bits=8)),
    "pack-quantized": (compressed("pack-quantized", num_bits=4, **_GROUP), partial(packers.pack_quantized, group=24)),
    "pack-quantized with zeros": (
        compressed("pack-quantized", num_bits=4, **{**_GROUP, "symmetric": False}),
        partial(packers.pack_quantized, group=24, symmetric=False),
    ),
    "pack-quantized 8 bits": (
        compressed("pack-quantized", num_bits=8, **_GROUP),
        partial(packers.pack_quantized, group=24, bits=8),
    ),
    "pack-quantized act-order": (
        compressed("pack-quantized", num_bits=4, actorder="group", **_GROUP),
        partial(packers.pack_quantized, group=24, act_order=True),
    ),
    "int-quantized": (compressed("int-quantized", num_bits=8, type="int", strategy="channel"), packers.int8),
    "fp8 tensor": (
        compressed("float-quantized", strategy="tensor", **_FP8),
        lambda w: packers.fp8(w, w.shape, shape=(1,)),
    ),
    "fp8 channel": (
        compressed("float-quantized", strategy="channel", **_FP8),
        lambda w: packers.fp8(w, (1, w.shape[1]), dtype=ml_dtypes.bfloat16),
    ),
    "fp8 group": (
        compressed("float-quantized", strategy="group", group_size=24, **_FP8),
        lambda w: packers.fp8(w, (1, 24)),
    ),
    "fp8 block": (
        compressed("float-quantized", strategy="block", block_structure=[16, 24], **_FP8),
        lambda w: packers.fp8(w, (16, 24)),
    ),
    # blocks that divide neither heads nor the feed-forward size
    "deepseek": (
        {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"},
        lambda w: packers.fp8(w, (32, 32), "weight_scale_inv"),
    ),
    "fp8 of one scale": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        lambda w: packers.fp8(w, w.shape, shape=()),
    ),
    "fbgemm": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        lambda w: packers.fp8(w, (1, w.shape[1])),
    ),
}
_GPT_OSS = {"hidden_size": 64, "intermediate_size": 96}


def quantized(name, directory, family="llama", linear=LINEAR, **changes):
    """Directories of a model in a format, and of the same with the weights that the codes stand for."""
    settings, pack = FORMATS[name]
    config = {**CONFIGS[family], **changes}
    tensors, plain = {}, {}
    for key, weight in weights(config).items():
        if not linear.fullmatch(key):
            tensors[key] = plain[key] = weight
            continue
        pieces, plain[key] = pack(weight)
        tensors |= {f"{key.removesuffix('weight')}{end}": value for end, value in pieces.items()}
    if "static" in settings.values():
        modules = [key.removesuffix("weight") for key in plain if linear.fullmatch(key)]
        tensors |= {f"{module}input_scale": np.ones(1, np.float32) for module in modules}
    packed = packers.write(directory / "packed", {**config, "quantization_config": settings}, tensors)
    return packed, packers.write(directory / "plain", config, plain)


def gpt_oss(directory):
    """Directories of gpt-oss, with its networks in MXFP4 and as those are."""
    config, tensors, plain = {**CONFIGS["gpt-oss"], **_GPT_OSS}, {}, {}
    for key, weight in weights(config).items():
        if not key.endswith(("gate_up_proj", "down_proj")):
            tensors[key] = plain[key] = weight
            continue
        pieces, plain[key] = packers.mxfp4(weight)
        tensors |= {f"{key}_{end}": value for end, value in pieces.items()}
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    packed = packers.write(directory / "packed", {**config, "quantization_config": settings}, tensors)
    return packed, packers.write(directory / "plain", config, plain)
