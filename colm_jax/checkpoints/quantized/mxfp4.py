"""Weights in MXFP4, as gpt-oss stores its networks: E2M1 codes in groups of 32 inputs with a power of two each.

`X_blocks` [networks, out, groups, 16] of bytes, the lower four bits first; `X_scales` [networks, out, groups] of
exponents plus 127 (OCP Microscaling Formats 1.0; transformers' `integrations/mxfp4.py`).
"""

from collections.abc import Callable
from functools import partial

import ml_dtypes
import numpy as np

from colm_jax.checkpoints.quantized.packed import Packed, PackedOnDisk, Pieces, check_dtype, check_shape, read_all
from colm_jax.checkpoints.reader import StoredTensor
from colm_jax.errors import UserError

GROUP = 32


def weight(module: str, pieces: Pieces) -> PackedOnDisk:
    """Return the weights of all networks, from the headers, in the shape of unquantised ones: [networks, in, out].

    Raises:
      UserError: a wrong shape or type.
    """
    blocks, scales = pieces["blocks"], pieces["scales"]
    check_dtype(blocks, np.uint8)
    check_dtype(scales, np.uint8)
    if len(blocks.shape) != 4 or blocks.shape[3] != GROUP // 2:
        raise UserError(
            f"{blocks.file}: tensor {blocks.name!r} has shape {list(blocks.shape)}, expected [networks, outputs, "
            f"groups, {GROUP // 2}]"
        )
    check_shape(scales, blocks.shape[:3], why=f"{blocks.name!r} is {list(blocks.shape)}")
    networks, out, groups = blocks.shape[:3]

    def slab(network: int) -> PackedOnDisk:
        one = {name: piece.slab(network) for name, piece in pieces.items()}
        return _described(module, one, (groups * GROUP, out), partial(_load, one["blocks"], one["scales"]), None)

    def whole() -> Packed:
        raise NotImplementedError("a stack is read a network at a time")

    return _described(module, pieces, (networks, groups * GROUP, out), whole, slab)


def _described(
    name: str,
    pieces: Pieces,
    shape: tuple[int, ...],
    load: Callable[[], Packed],
    slab: Callable[[int], PackedOnDisk] | None,
) -> PackedOnDisk:
    scale = np.dtype(ml_dtypes.float8_e8m0fnu)
    return PackedOnDisk(name, pieces, shape, "float4", scale, 1, GROUP, load, transposed=True, slab_of=slab)


def _load(blocks: StoredTensor, scales: StoredTensor) -> Packed:
    """Read one network's weight."""
    pairs = read_all(blocks).reshape(blocks.shape[0], -1)
    codes = np.empty((len(pairs), 2 * pairs.shape[1]), np.uint8)
    np.bitwise_and(pairs, 15, out=codes[:, 0::2])
    np.right_shift(pairs, 4, out=codes[:, 1::2])
    exponents = read_all(scales)
    if (exponents == 255).any():
        raise UserError(f"{scales.file}: tensor {scales.name!r} holds NaN scales (255); the file is damaged")
    powers = exponents.view(ml_dtypes.float8_e8m0fnu)
    return Packed("float4", codes.view(ml_dtypes.float4_e2m1fn), powers, None, 1, GROUP, None)
