"""Weights in 4-bit (and 8-bit) integers, packed into 32-bit words: AWQ, GPTQ, compressed-tensors' `pack-quantized`.

AWQ ("gemm"): qweight [in, out/8], qzeros [groups, out/8], scales [groups, out]; the four bits of a word, lowest first,
are outputs 0, 2, 4, 6, 1, 3, 5, 7. GPTQ: qweight [in/8, out], qzeros [groups, out/8], scales [groups, out], all in
order, and g_idx [in], the group of each input; zero points are stored less 1, except in the format `gptq_v2`.
pack-quantized: weight_packed [out, in/8], weight_scale [out, groups], weight_zero_point [out/8, groups]; everything
plus 8.
"""

import math

import numpy as np

from colm_jax.checkpoints.quantized.packed import (
    FLOATS,
    Packed,
    PackedOnDisk,
    Pieces,
    centred,
    check_dtype,
    check_group,
    check_shape,
    nibbles,
    read_all,
    read_scales,
)
from colm_jax.checkpoints.reader import StoredTensor
from colm_jax.errors import UserError

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _sizes(words: StoredTensor) -> tuple[int, int]:
    check_dtype(words, np.int32)
    if len(words.shape) != 2 or not all(words.shape):
        raise UserError(f"{words.file}: tensor {words.name!r} has shape {list(words.shape)}, expected two axes")
    return words.shape[0], words.shape[1]


def _unpack(words: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Return codes from 0, as uint8, along `axis`."""
    if bits == 4:
        return nibbles(words, axis=axis)
    parts = words.view(np.uint8).reshape(*words.shape, 4)  # little-endian
    return np.moveaxis(parts, -1, axis + 1).reshape(*words.shape[:axis], -1, *words.shape[axis + 1 :])


def awq(module: str, pieces: Pieces, group_size: int) -> PackedOnDisk:
    """Return a module's weight in AWQ's format.

    Raises:
      UserError: a wrong shape or type.
    """
    words, zeros, scales = pieces["qweight"], pieces["qzeros"], pieces["scales"]
    width, out = _sizes(words)[0], 8 * _sizes(words)[1]
    group = check_group(group_size, width, words)
    check_dtype(zeros, np.int32)
    check_dtype(scales, *FLOATS)
    why = f"{words.name!r} is {list(words.shape)}, group_size {group}"
    check_shape(zeros, (width // group, out // 8), why=why)
    check_shape(scales, (width // group, out), why=why)

    def load() -> Packed:
        codes = centred(nibbles(read_all(words), _AWQ_ORDER), 4).T
        points = centred(nibbles(read_all(zeros), _AWQ_ORDER), 4).T
        return Packed("int4", codes, read_scales(scales).T, points, 1, group, None)

    name = f"{module}.weight"
    return PackedOnDisk(name, pieces, (out, width), "int4", scales.dtype, 1, group, load, zeros=True)


def gptq(module: str, pieces: Pieces, bits: int, group_size: int, *, less_one: bool, ordered: bool) -> PackedOnDisk:
    """Return a module's weight in GPTQ's format, of 4 or 8 bits.

    `less_one`: whether zero points are stored less 1; `ordered`: whether a group's inputs may be anywhere (`desc_act`).

    Raises:
      UserError: a wrong shape or type.
    """
    words, zeros, scales, index = pieces["qweight"], pieces["qzeros"], pieces["scales"], pieces.get("g_idx")
    each = 32 // bits
    width, out = each * _sizes(words)[0], _sizes(words)[1]
    group = check_group(group_size, width, words)
    groups = width // group
    check_dtype(zeros, np.int32)
    check_dtype(scales, *FLOATS)
    why = f"{words.name!r} is {list(words.shape)}, bits {bits}, group_size {group}"
    check_shape(zeros, (groups, math.ceil(out / each)), why=why)
    check_shape(scales, (groups, out), why=why)
    if index is not None:
        check_dtype(index, np.int32, np.int64)
        check_shape(index, (width,), why=why)

    def load() -> Packed:
        order = None if index is None else _order(index, groups, group, ordered)
        codes = centred(_unpack(read_all(words), bits, 0), bits)
        if order is not None:
            codes = codes[order]
        stored = read_all(zeros)
        if less_one:  # of whole words, whose codes borrowed from each other when they were written
            stored = (stored.view(np.uint32) + np.uint32(0x11111111 if bits == 4 else 0x01010101)).view(np.int32)
        points = centred(_unpack(stored, bits, 1)[:, :out], bits)
        return Packed(f"int{bits}", codes.T, read_scales(scales).T, points.T, 1, group, order)

    name, kind = f"{module}.weight", f"int{bits}"
    return PackedOnDisk(name, pieces, (out, width), kind, scales.dtype, 1, group, load, zeros=True, ordered=ordered)


def pack_quantized(
    module: str, pieces: Pieces, bits: int, group_size: int | None, *, symmetric: bool, one: bool, ordered: bool
) -> PackedOnDisk:
    """Return a module's weight in compressed-tensors' `pack-quantized`, of 4 or 8 bits.

    Args:
      module: its name.
      pieces: its tensors.
      bits: of a code.
      group_size: inputs that share a scale; None: all.
      symmetric: whether there are no zero points.
      one: a single scale for the whole weight.
      ordered: whether the inputs of a group may be anywhere (`actorder`).

    Raises:
      UserError: a wrong shape or type.
    """
    words, scales, stored = pieces["weight_packed"], pieces["weight_scale"], pieces["weight_shape"]
    each, (out, columns) = 32 // bits, _sizes(words)
    check_dtype(stored, np.int64, np.int32)
    check_shape(stored, (2,), why="the weight's outputs and inputs")
    shape = tuple(map(int, read_all(stored)))
    if shape[0] != out or shape[1] < 1 or math.ceil(shape[1] / each) != columns:
        raise UserError(
            f"{stored.file}: tensor {stored.name!r} says {list(shape)}, but {words.name!r} has shape "
            f"{list(words.shape)} ({each} inputs a word)"
        )
    width = shape[1]
    group = width if group_size is None else check_group(group_size, width, words)
    groups, index = width // group, pieces.get("weight_g_idx")
    why = f"of {words.name!r}, {list(shape)} in groups of {group} inputs"
    check_dtype(scales, *FLOATS)
    check_shape(scales, *([(1,), ()] if one else [(out, groups)]), why=why)
    zeros = None if symmetric else pieces["weight_zero_point"]
    if zeros is not None:
        check_dtype(zeros, np.int32)
        check_shape(zeros, (math.ceil(out / each), groups), why=why)
    if index is not None:
        check_dtype(index, np.int32, np.int64)
        check_shape(index, (width,), why=why)

    def load() -> Packed:
        order = None if index is None else _order(index, groups, group, ordered)
        codes = centred(_unpack(read_all(words), bits, 1)[:, :width], bits)
        if order is not None:
            codes = codes[:, order]
        points = None if zeros is None else centred(_unpack(read_all(zeros), bits, 0)[:out], bits)
        values = read_scales(scales).reshape(-1, groups)
        return Packed(f"int{bits}", codes, values, points, out if one else 1, group, order)

    name, kind, block = f"{module}.weight", f"int{bits}", out if one else 1
    return PackedOnDisk(
        name, pieces, shape, kind, scales.dtype, block, group, load, zeros=not symmetric, ordered=ordered
    )


def _order(index: StoredTensor, groups: int, group: int, ordered: bool) -> np.ndarray | None:
    """Return the inputs sorted by their groups; None unless `ordered`.

    Raises:
      UserError: a group that does not exist, or that has not the size of the others; inputs out of order that should
        not be.
    """
    of_input = read_all(index).astype(np.int64)
    if of_input.min() < 0 or of_input.max() >= groups:
        wrong = of_input.min() if of_input.min() < 0 else of_input.max()
        raise UserError(f"{index.file}: tensor {index.name!r} names group {wrong}; the groups are 0 to {groups - 1}")
    counts = np.bincount(of_input, minlength=groups)
    if (counts != group).any():
        uneven = int(np.argmax(counts != group))
        raise UserError(
            f"{index.file}: tensor {index.name!r} has {counts[uneven]} inputs in group {uneven}; group_size is {group}"
        )
    if not ordered and (np.diff(of_input) < 0).any():
        raise UserError(
            f"{index.file}: tensor {index.name!r} is not in order, but config.json says that it is; set desc_act (or "
            "actorder) as the checkpoint was made"
        )
    return np.argsort(of_input, kind="stable").astype(np.int32) if ordered else None
