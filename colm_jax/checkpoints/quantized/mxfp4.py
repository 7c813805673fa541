"""Weights in MXFP4, as gpt-oss stores its networks: E2M1 codes in groups of 32 inputs with a power of two each.

`X_blocks` [networks, out, groups, 16] of bytes, the lower four bits first; `X_scales` [networks, out, groups] of
exponents plus 127 (OCP Microscaling Formats 1.0; transformers' `integrations/mxfp4.py`).
"""

import ml_dtypes
import numpy as np

from colm_jax.checkpoints.quantized.packed import Packed, PackedOnDisk, Pieces, check_dtype, check_shape
from colm_jax.errors import UserError

GROUP = 32


def weight(module: str, pieces: Pieces) -> PackedOnDisk:
    """Return the weights of all networks, from the headers.

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

    def load(network: int) -> Packed:
        pairs = blocks.rows(network, network + 1).reshape(out, groups * GROUP // 2)
        codes = np.empty((out, groups * GROUP), np.uint8)
        np.bitwise_and(pairs, 15, out=codes[:, 0::2])
        np.right_shift(pairs, 4, out=codes[:, 1::2])
        exponents = scales.rows(network, network + 1)[0]
        if (exponents == 255).any():
            raise UserError(f"{scales.file}: tensor {scales.name!r} holds NaN scales (255); the file is damaged")
        powers = exponents.view(ml_dtypes.float8_e8m0fnu)
        return Packed("float4", codes.view(ml_dtypes.float4_e2m1fn), powers, None, 1, GROUP, None)

    shape = (networks, out, groups * GROUP)
    return PackedOnDisk(module, pieces, shape, "float4", f"groups of {GROUP} inputs", load)
