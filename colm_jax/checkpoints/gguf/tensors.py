"""The tensors of a GGUF file under their Hugging Face names, read by rows and dequantised block by block.

llama.cpp's converter reorders rows and shifts norms. Reading undoes this, so that values are those of the checkpoint.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES

from colm_jax.checkpoints.gguf.header import Stored, Type
from colm_jax.errors import UserError
from colm_jax.storage import read_range

_PLAIN = {Type.F32: np.dtype("<f4"), Type.F16: np.dtype("<f2"), Type.BF16: np.dtype(ml_dtypes.bfloat16)}
_PIECE = 1 << 18  # values to dequantise at once: the package makes several arrays of that size


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file, or one network's part of a stacked tensor of a mixture."""

    name: str  # in a Hugging Face checkpoint
    stored: Stored
    shape: tuple[int, ...]
    first: int = 0  # row of the stored tensor at which it begins
    heads: int | None = None  # rows are stored as rotary pairs, head by head: undo it for this many heads
    shift: float = 0.0  # to subtract

    @property
    def file(self) -> Path:
        """The file."""
        return self.stored.file

    @property
    def type(self) -> str:
        """The type in the file, as llama.cpp names it."""
        return self.stored.type.name

    @property
    def dtype(self) -> np.dtype:
        """The type of what `rows` returns."""
        return np.dtype(np.float32) if self.shift else _PLAIN.get(self.stored.type, np.dtype(np.float32))

    @property
    def offset(self) -> int:
        """The place of its first byte in the file."""
        return self.stored.offset + self.first * self.stored.row_bytes

    @property
    def bytes(self) -> int:
        """The size in the file."""
        return int(np.prod(self.shape[:-1] if len(self.stored.shape) > 1 else self.shape)) * self.stored.row_bytes

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows start..stop-1 (elements, of a vector).

        Raises:
          UserError: a truncated file, or values that are not finite.
        """
        if len(self.shape) > 2:
            return np.stack([self.slab(number).rows(0, self.shape[1]) for number in range(start, stop)])
        if len(self.shape) > len(self.stored.shape):  # a matrix of one row, stored as a vector
            values = read_rows(self.stored, 0, self.stored.shape[0])[None][start:stop]
        elif self.heads is None:
            values = read_rows(self.stored, self.first + start, self.first + stop)
        else:
            values = self._unpaired(start, stop)
        return values - np.float32(self.shift) if self.shift else values

    def slab(self, number: int) -> "GGUFTensor":
        """Return one entry of the leading axis, as a tensor."""
        first = self.first + number * int(np.prod(self.shape[1:-1]))
        return replace(self, shape=self.shape[1:], first=first)

    def named(self, name: str) -> "GGUFTensor":
        """Return the same tensor under another name."""
        return replace(self, name=name)

    def _unpaired(self, start: int, stop: int) -> np.ndarray:
        """Return rows in the order of the checkpoint; whole heads are read."""
        assert self.heads is not None
        size = self.shape[0] // self.heads
        low, high = start // size, -(-stop // size)
        whole = read_rows(self.stored, self.first + low * size, self.first + high * size)
        return unpaired(whole, high - low)[start - low * size : stop - low * size]


@dataclass(frozen=True)
class Codes:
    """Rows of a matrix as they are stored: a value is its code times the scale of its group of columns."""

    bits: int  # 4 or 8
    codes: np.ndarray  # int8, [rows, columns]
    scales: np.ndarray  # float16, [rows, columns / CODE_GROUP]


CODE_GROUP = 32  # columns that share a scale
_CODES = {Type.Q8_0: 8, Type.Q4_0: 4}


def code_bits(tensor: GGUFTensor) -> int | None:
    """Return the bits of a matrix's codes; None for types that are more than codes and scales."""
    return _CODES.get(tensor.stored.type) if len(tensor.shape) == 2 and not tensor.shift else None


def read_codes(tensor: GGUFTensor) -> Codes:
    """Return a whole matrix of a type with `code_bits`, without dequantising it.

    Raises:
      UserError: a truncated file, or scales that are not finite.
    """
    bits, (rows, columns) = _CODES[tensor.stored.type], tensor.shape
    blocks = read_bytes(tensor.stored, tensor.first, tensor.first + rows).reshape(rows, columns // CODE_GROUP, -1)
    scales = blocks[..., :2].copy().view("<f2")[..., 0]
    check_finite(tensor.stored, scales)
    if bits == 8:
        codes = blocks[..., 2:].view(np.int8)
    else:  # the low halves of the bytes are the first columns, the high halves the others; 8 stands for 0
        halves = blocks[..., 2:]
        codes = np.concatenate([halves & 15, halves >> 4], axis=-1).view(np.int8) - np.int8(8)
    codes = codes.reshape(rows, columns)
    if tensor.heads is not None:
        codes, scales = (unpaired(values, tensor.heads) for values in (codes, scales))
    return Codes(bits, codes, scales)


def unpaired(values: np.ndarray, heads: int) -> np.ndarray:
    """Return rows whose halves of each head are stored alternately: row i of half j of a head at 2 i + j."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def read_rows(stored: Stored, start: int, stop: int) -> np.ndarray:
    """Return rows start..stop-1 of a tensor, whose leading axes are taken as one: [rows, columns], or [rows].

    Types of 16 and 32 bits keep their type, all others become float32.

    Raises:
      UserError: a truncated file, or values that are not finite.
    """
    data = read_bytes(stored, start, stop)
    values = decode(stored, data)
    check_finite(stored, values)
    return values


def read_bytes(stored: Stored, start: int, stop: int) -> np.ndarray:
    """Return the bytes of rows start..stop-1, [rows, bytes of a row].

    Raises:
      UserError: a truncated file.
    """
    count, width = stop - start, stored.row_bytes
    data = read_range(stored.file, stored.offset + start * width, stored.offset + stop * width)
    if len(data) != count * width:
        raise UserError(f"{stored.file}: ends within tensor {stored.name!r} (truncated?)")
    return np.frombuffer(data, np.uint8).reshape(count, width)


def decode(stored: Stored, data: np.ndarray) -> np.ndarray:
    """Return the values of rows, or of the same columns of each, from their bytes [rows, bytes]."""
    if stored.type in _PLAIN:
        values = data.view(_PLAIN[stored.type])
        return values if len(stored.shape) > 1 else values[:, 0]
    block, size = GGML_QUANT_SIZES[stored.type]
    columns = data.shape[1] // size * block
    values = np.empty((len(data), columns), np.float32)
    step = max(1, _PIECE // columns)
    for i in range(0, len(data), step):
        with np.errstate(all="ignore"):  # what is not finite is reported afterwards
            values[i : i + step] = quants.dequantize(data[i : i + step], stored.type)
    return values


def check_finite(stored: Stored, values: np.ndarray) -> None:
    """Check the values of a tensor.

    Raises:
      UserError: some are not finite.
    """
    if not np.isfinite(values).all():
        raise UserError(f"{stored.file}: tensor {stored.name!r} holds NaN or infinite values")


def read_vector(stored: Stored) -> np.ndarray:
    """Return a whole vector as float32.

    Raises:
      UserError: it is no vector, is truncated, or holds values that are not finite.
    """
    if len(stored.shape) != 1:
        raise UserError(f"{stored.file}: tensor {stored.name!r} has shape {list(stored.shape)}, expected a vector")
    return read_rows(stored, 0, stored.shape[0]).astype(np.float32)
