"""Matrices of GGUF files that may stay in few bits on the device: Q8_0 and Q4_0 are codes and scales, nothing else."""

import numpy as np

from colm_jax.checkpoints.gguf.tensors import CODE_GROUP, GGUFTensor, code_bits, read_codes
from colm_jax.checkpoints.quantized.packed import Packed, PackedOnDisk
from colm_jax.checkpoints.reader import StoredTensor


def packed(tensor: StoredTensor) -> StoredTensor:
    """Return a matrix of codes and scales as such; any other tensor as it is."""
    if not isinstance(tensor, GGUFTensor):
        return tensor
    bits, matrix = code_bits(tensor), tensor
    if bits is None:
        return tensor

    def load() -> Packed:
        found = read_codes(matrix)
        return Packed(f"int{bits}", found.codes, found.scales, zeros=None, block=1, group=CODE_GROUP, order=None)

    return PackedOnDisk(
        name=tensor.name,
        pieces={tensor.type: tensor},
        shape=tensor.shape,
        kind=f"int{bits}",
        scale=np.dtype(np.float16),
        block=1,
        group=CODE_GROUP,
        load=load,
    )
