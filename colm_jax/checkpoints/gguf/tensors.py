"""The tensors of a GGUF file under their Hugging Face names, read by rows and dequantised block by block.

Each undoes, row by row, what llama.cpp's converter did to it, so that a tensor reads as in the original checkpoint.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import quants

from colm_jax.checkpoints.gguf.header import Stored, Type
from colm_jax.errors import UserError
from colm_jax.storage import read_range

_PLAIN = {Type.F32: np.dtype("<f4"), Type.F16: np.dtype("<f2"), Type.BF16: np.dtype(ml_dtypes.bfloat16)}
_PIECE = 1 << 18  # values to dequantise at once: the package makes several arrays of that size


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file, or the part of one that is one network's of a mixture."""

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
        """Return rows whose halves of each head are stored alternately: row i of half j of a head at 2 i + j."""
        assert self.heads is not None
        size = self.shape[0] // self.heads
        low, high = start // size, -(-stop // size)
        whole = read_rows(self.stored, self.first + low * size, self.first + high * size)
        pairs = whole.reshape(high - low, size // 2, 2, *whole.shape[1:])
        return pairs.swapaxes(1, 2).reshape(whole.shape)[start - low * size : stop - low * size]


def read_rows(stored: Stored, start: int, stop: int) -> np.ndarray:
    """Return rows start..stop-1 of a tensor, whose leading axes are taken as one: [rows, columns], or [rows].

    Types of 16 and 32 bits keep their type, all others become float32.

    Raises:
      UserError: a truncated file, or values that are not finite.
    """
    count, width = stop - start, stored.row_bytes
    data = read_range(stored.file, stored.offset + start * width, stored.offset + stop * width)
    if len(data) != count * width:
        raise UserError(f"{stored.file}: ends within tensor {stored.name!r} (truncated?)")
    columns = (stored.shape[-1],) if len(stored.shape) > 1 else ()
    if stored.type in _PLAIN:
        values = np.frombuffer(data, _PLAIN[stored.type]).reshape(count, *columns)
    else:
        blocks = np.frombuffer(data, np.uint8).reshape(count, width)
        values = np.empty((count, *columns), np.float32)
        step = max(1, _PIECE // stored.shape[-1])
        for i in range(0, count, step):
            with np.errstate(all="ignore"):  # what is not finite is reported below
                values[i : i + step] = quants.dequantize(blocks[i : i + step], stored.type)
    if not np.isfinite(values).all():
        raise UserError(f"{stored.file}: tensor {stored.name!r} holds NaN or infinite values")
    return values


def read_vector(stored: Stored) -> np.ndarray:
    """Return a whole vector as float32.

    Raises:
      UserError: it is no vector, is truncated, or holds values that are not finite.
    """
    if len(stored.shape) != 1:
        raise UserError(f"{stored.file}: tensor {stored.name!r} has shape {list(stored.shape)}, expected a vector")
    return read_rows(stored, 0, stored.shape[0]).astype(np.float32)
