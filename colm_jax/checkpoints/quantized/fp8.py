"""Weights in FP8 (E4M3): a tensor `weight` of that type, and its scales beside it.

Sources of the layouts: compressed-tensors (format `float-quantized`), DeepSeek-V3's `weight_scale_inv` (which, in spite
of its name, multiplies), FBGEMM and AutoFP8 as transformers and vLLM read them. Also 8-bit integers of compressed-
tensors (`int-quantized`). Scales of activations and caches are not used: those stay unquantised.
"""

import math

import ml_dtypes
import numpy as np

from colm_jax.checkpoints.quantized.packed import (
    FLOATS,
    Packed,
    PackedOnDisk,
    Pieces,
    check_dtype,
    check_group,
    check_shape,
    read_all,
    read_scales,
)
from colm_jax.errors import UserError

_TYPES = {np.dtype(ml_dtypes.float8_e4m3fn): "float8", np.dtype(np.int8): "int8"}
_SCALE_TYPES = (*FLOATS, ml_dtypes.float8_e8m0fnu)


def is_packed(pieces: Pieces) -> bool:
    """Return whether a module's `weight` is in 8 bits."""
    return "weight" in pieces and pieces["weight"].dtype in _TYPES


def weight(module: str, pieces: Pieces, scale_name: str, strategy: str, block: tuple[int, int]) -> PackedOnDisk:
    """Return the weight of a module, from the headers of its tensors.

    Args:
      module: its name.
      pieces: `weight` and `scale_name`.
      scale_name: the end of the name of its scales.
      strategy: one scale for a "tensor", a "channel" (output), a "group" of inputs of each output, or a "block".
      block: the outputs and inputs that share a scale, of "group" (where the outputs are 1) and "block".

    Raises:
      UserError: a wrong shape or type.
    """
    codes, scale = pieces["weight"], pieces[scale_name]
    if len(codes.shape) != 2:
        raise UserError(f"{codes.file}: tensor {codes.name!r} has shape {list(codes.shape)}, expected two axes")
    out, width = codes.shape
    if strategy == "tensor":
        shapes, rows, group = [(), (1,), (1, 1)], out, width
    elif strategy == "channel":
        shapes, rows, group = [(out, 1), (out,)], 1, width
    else:
        rows, group = block
        if strategy == "group":
            group = check_group(group, width, codes)
        shapes = [(math.ceil(out / rows), math.ceil(width / group))]
    check_dtype(scale, *_SCALE_TYPES)
    why = f"one scale a {strategy}" + ("" if strategy in ("tensor", "channel") else f" of {[rows, group]}")
    check_shape(scale, *shapes, why=f"{why}, of {codes.name!r} {list(codes.shape)}")
    kind = _TYPES[codes.dtype]

    def load() -> Packed:
        scales = read_scales(scale).reshape(math.ceil(out / max(rows, 1)), -1)
        values = read_all(codes)
        if kind == "float8" and (values.view(np.uint8) & 127 == 127).any():
            raise UserError(f"{codes.file}: tensor {codes.name!r} holds NaN values; the file is damaged")
        return Packed(kind, values, scales, None, rows, group, None)

    return PackedOnDisk(f"{module}.weight", pieces, (out, width), kind, scale.dtype, rows, group, load)
