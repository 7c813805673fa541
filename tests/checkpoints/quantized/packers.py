"""Quantised checkpoints as other programs write them, packed here word by word from the published layouts.

Each packer takes a weight [out, in] and returns its tensors by the ends of their names, and the weight that they stand
for, in float32.
"""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]  # the column of each four bits, lowest first
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def rounded(weight, bits, group_of, symmetric=False):
    """Codes from 0, and scales (float16) and zero points [out, groups], by the group of each input."""
    top, count = 2**bits - 1, max(group_of) + 1
    scales, zeros = np.zeros((len(weight), count), np.float16), np.zeros((len(weight), count), int)
    codes = np.zeros(weight.shape, int)
    for g in range(count):
        columns = weight[:, np.array(group_of) == g]
        low, high = np.minimum(columns.min(1), 0), np.maximum(columns.max(1), 0)
        if symmetric:
            high = np.abs(columns).max(1)
            low = -high
        scales[:, g] = np.maximum((high - low) / top, 1e-4)
        scale = scales[:, g].astype(np.float32)
        zeros[:, g] = (top + 1) // 2 if symmetric else np.clip(np.round(-low / scale), 0, top)
        codes[:, np.array(group_of) == g] = np.clip(np.round(columns / scale[:, None]) + zeros[:, g, None], 0, top)
    wide = (codes - zeros[:, group_of]) * scales.astype(np.float32)[:, group_of]
    return codes, scales, zeros, wide.astype(np.float32)


def words(codes, bits, places=None):
    """Join codes [..., n] into 32-bit words, the first in the lowest bits, or in the order of `places`."""
    each = 32 // bits
    joined = np.zeros((*codes.shape[:-1], codes.shape[-1] // each), np.uint32)
    for place in range(each):
        column = place if places is None else places[place]
        joined |= codes[..., column::each].astype(np.uint32) << np.uint32(bits * place)
    return joined.view(np.int32)


def awq(weight, group):
    group_of = np.arange(weight.shape[1]) // group
    codes, scales, zeros, wide = rounded(weight, 4, group_of)
    packed = {"qweight": words(codes.T, 4, AWQ_PLACES), "qzeros": words(zeros.T, 4, AWQ_PLACES), "scales": scales.T}
    return packed, wide


def gptq(weight, group, bits=4, symmetric=False, act_order=False, less_one=True):
    group_of = np.arange(weight.shape[1]) // group
    if act_order:
        group_of = np.random.default_rng(weight.size).permutation(group_of)
    codes, scales, zeros, wide = rounded(weight, bits, group_of, symmetric)
    points = words(zeros.T, bits).view(np.uint32)
    if less_one:
        points = points - np.uint32(0x11111111 if bits == 4 else 0x01010101)
    packed = {
        "qweight": np.ascontiguousarray(words(codes, bits).T),
        "qzeros": points.view(np.int32),
        "scales": scales.T,
        "g_idx": group_of.astype(np.int32),
    }
    return packed, wide


def pack_quantized(weight, group, bits=4, symmetric=True, act_order=False):
    group_of = np.arange(weight.shape[1]) // group
    if act_order:
        group_of = np.random.default_rng(weight.size).permutation(group_of)
    codes, scales, zeros, wide = rounded(weight, bits, group_of, symmetric)
    packed = {
        "weight_packed": words(codes, bits),
        "weight_scale": scales,
        "weight_shape": np.array(weight.shape, np.int64),
    }
    if not symmetric:
        packed["weight_zero_point"] = np.ascontiguousarray(words(zeros.T, bits).T)
    if act_order:
        packed["weight_g_idx"] = group_of.astype(np.int32)
    return packed, wide


def fp8(weight, blocks, name="weight_scale", dtype=np.float32, shape=None):
    """`blocks`: rows and inputs that share a scale."""
    rows, columns = (np.arange(size) // block for size, block in zip(weight.shape, blocks))
    scales = np.zeros((rows[-1] + 1, columns[-1] + 1), np.float32)
    for r in range(rows[-1] + 1):
        for c in range(columns[-1] + 1):
            scales[r, c] = np.abs(weight[rows == r][:, columns == c]).max() / 448
    scales = scales.astype(dtype)
    spread = scales.astype(np.float32)[rows][:, columns]
    codes = (weight / spread).astype(ml_dtypes.float8_e4m3fn)
    wide = codes.astype(np.float32) * spread
    return {"weight": codes, name: scales if shape is None else scales.reshape(shape)}, wide


def int8(weight):
    scales = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float32)
    codes = np.round(weight / scales).astype(np.int8)
    return {"weight": codes, "weight_scale": scales}, codes.astype(np.float32) * scales


def mxfp4(stack):
    """`stack`: [networks, in, out]; the codes are of the transposes."""
    weight = stack.swapaxes(1, 2)
    groups = weight.reshape(*weight.shape[:2], -1, 32)
    exponents = np.floor(np.log2(np.maximum(np.abs(groups).max(-1), 1e-30))) - 2
    scaled = groups / 2.0 ** exponents[..., None]
    size = np.argmin(np.abs(np.abs(scaled)[..., None] - np.array(E2M1)), axis=-1)
    codes = size | ((scaled < 0) << 3)
    wide = np.where(codes & 8, -1, 1) * np.array(E2M1)[codes & 7] * 2.0 ** exponents[..., None]
    packed = {
        "blocks": (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8),
        "scales": (exponents + 127).astype(np.uint8),
    }
    return packed, wide.reshape(weight.shape).swapaxes(1, 2).astype(np.float32)


_TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
}


def write(directory: Path, config: dict, tensors: dict[str, np.ndarray], file: str = "model.safetensors") -> Path:
    """A checkpoint of these tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, directory / file)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def read(directory: Path, file: str = "model.safetensors") -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, also of types that NumPy lacks, which safetensors writes but does not read."""
    data = (directory / file).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    found = {}
    for name, facts in header.items():
        if name != "__metadata__":
            first, last = facts["data_offsets"]
            values = np.frombuffer(data[start + first : start + last], _TYPES[facts["dtype"]])
            found[name] = values.reshape(facts["shape"]).copy()
    return found
