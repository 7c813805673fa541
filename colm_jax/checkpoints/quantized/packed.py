"""The common form of a weight that a checkpoint stores in few bits: codes, scales, zero points, in host memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from colm_jax.checkpoints.reader import StoredTensor
from colm_jax.errors import UserError

_LARGEST_CODE = {
    "int8": 255,
    "int4": 15,
    "float8": 448,
    "float4": 6,
}  # by how much a code may differ from its zero point
_ROWS = 64  # to dequantise at a time
Pieces = Mapping[str, StoredTensor]  # the stored tensors of one weight, by the ends of their names


@dataclass(frozen=True)
class Packed:
    """A weight [out, in]: (code - zero point) · scale, one scale for a block of rows and a group of columns.

    The blocks and groups at the end may be smaller.
    """

    kind: str  # "int8", "int4", "float8" or "float4"
    codes: np.ndarray  # [out, in], a code an element: int8 (also of 4 bits), float8_e4m3fn, float4_e2m1fn
    scales: np.ndarray  # [blocks, groups]
    zeros: np.ndarray | None  # int8, as the scales; None: 0
    block: int  # rows
    group: int  # columns of the codes
    order: np.ndarray | None  # int32 [in]: the input of each column of the codes; None: the columns are in order

    def dequantised(self, start: int, stop: int, columns: slice = slice(None)) -> np.ndarray:
        """Return rows start..stop-1 in float32, columns in the order of the inputs: all, or (without an order) some."""
        assert self.order is None or columns == slice(None)
        of_row = np.arange(start, stop) // self.block
        of_column = np.arange(self.codes.shape[1])[columns] // self.group

        def spread(part: np.ndarray) -> np.ndarray:
            return part[of_row].astype(np.float32)[:, of_column]

        wide = self.codes[start:stop, columns].astype(np.float32)
        if self.zeros is not None:
            wide -= spread(self.zeros)
        with np.errstate(over="ignore"):  # what is not finite is reported afterwards
            wide *= spread(self.scales)
        if self.order is None:
            return wide
        result = np.empty_like(wide)
        result[:, self.order] = wide
        return result

    def fits(self, dtype: np.dtype) -> bool:
        """Return whether all weights are finite in a type."""
        largest = float(np.abs(self.scales.astype(np.float32)).max(initial=0)) * _LARGEST_CODE[self.kind]
        if largest < float(ml_dtypes.finfo(dtype).max):
            return True
        with np.errstate(over="ignore"):
            return all(
                np.isfinite(self.dequantised(start, min(start + _ROWS, len(self.codes))).astype(dtype)).all()
                for start in range(0, len(self.codes), _ROWS)
            )

    def take(self, rows: slice) -> "Packed":
        """Return the weight of some of the rows, which may be every second one."""
        of_row = np.arange(len(self.codes))[rows] // self.block
        single = len(self.scales) == 1
        zeros = self.zeros if self.zeros is None or single else self.zeros[of_row]
        scales = self.scales if single else self.scales[of_row]
        block = len(of_row) if single else 1
        return replace(self, codes=self.codes[rows], scales=scales, zeros=zeros, block=block)


@dataclass(frozen=True)
class PackedOnDisk:
    """A weight in few bits before its bytes are read; the headers of its pieces have been checked.

    A `StoredTensor`, whose rows are dequantised; each call of `rows` reads the whole weight (see `opened`).
    """

    name: str  # of the weight, as an unquantised checkpoint names it
    pieces: Pieces
    shape: tuple[int, ...]  # [out, in], or [in, out] if `transposed`; of a stack, [networks, ...]
    kind: str  # as in Packed
    scale: np.dtype  # the type of the scales
    block: int  # rows that share a scale
    group: int  # inputs that share a scale
    load: Callable[[], Packed]
    zeros: bool = False  # whether there are zero points
    ordered: bool = False  # whether there is an order of the inputs
    transposed: bool = False
    slab_of: Callable[[int], "PackedOnDisk"] | None = None
    stored_type: str | None = None  # what the file calls it; None: as `kind`

    @property
    def type(self) -> str:
        """What the file calls the codes."""
        return self.stored_type or self.kind

    def named(self, name: str) -> "PackedOnDisk":
        """Return the same weight under another name."""
        return replace(self, name=name)

    @property
    def file(self) -> Path:
        """The file of the first piece."""
        return next(iter(self.pieces.values())).file

    @property
    def offset(self) -> int:
        """Where the first piece begins in its file."""
        return next(iter(self.pieces.values())).offset

    @property
    def bytes(self) -> int:
        """The size of all pieces."""
        return sum(piece.bytes for piece in self.pieces.values())

    @property
    def dtype(self) -> np.dtype:
        """The type of `rows`."""
        return np.dtype(np.float32)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read the weight and return rows start..stop-1."""
        return self.opened().rows(start, stop)

    def slab(self, number: int) -> "PackedOnDisk":
        """Return one network's weight of a stack."""
        assert self.slab_of is not None
        return self.slab_of(number)

    def opened(self) -> "Opened":
        """Read the weight."""
        return Opened(self.name, self.file, self.shape, self.load(), self.transposed)


@dataclass(frozen=True)
class Opened:
    """A weight in few bits in host memory: a `StoredTensor`, whose rows are dequantised."""

    name: str
    file: Path
    shape: tuple[int, ...]
    packed: Packed
    transposed: bool

    @property
    def type(self) -> str:
        """What the codes are."""
        return self.packed.kind

    @property
    def offset(self) -> int:
        """In memory there is none."""
        return 0

    def named(self, name: str) -> "Opened":
        """Return the same weight under another name."""
        return replace(self, name=name)

    @property
    def dtype(self) -> np.dtype:
        """The type of `rows`."""
        return np.dtype(np.float32)

    @property
    def bytes(self) -> int:
        """The size of all rows."""
        return self.dtype.itemsize * int(np.prod(self.shape))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows start..stop-1."""
        if self.transposed:
            return self.packed.dequantised(0, self.shape[1], slice(start, stop)).T
        return self.packed.dequantised(start, stop)

    def slab(self, number: int) -> "Opened":
        """Stacks are opened a slab at a time."""
        raise NotImplementedError


def read_all(tensor: StoredTensor) -> np.ndarray:
    """Read a whole tensor."""
    return tensor.rows(0, tensor.shape[0] if tensor.shape else 1).reshape(tensor.shape)


def read_scales(tensor: StoredTensor, values: np.ndarray | None = None) -> np.ndarray:
    """Read scales (or check those that were read).

    Raises:
      UserError: a scale that is not finite.
    """
    values = read_all(tensor) if values is None else values
    if not np.isfinite(values.astype(np.float32)).all():
        raise UserError(f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite scales; the file is damaged")
    return values


def check_shape(tensor: StoredTensor, *allowed: tuple[int, ...], why: str) -> None:
    """Check the shape of a piece; `why` says what it follows from."""
    if tensor.shape not in allowed:
        expected = " or ".join(str(list(shape)) for shape in allowed)
        raise UserError(
            f"{tensor.file}: tensor {tensor.name!r} has shape {list(tensor.shape)}, expected {expected} ({why})"
        )


def check_dtype(tensor: StoredTensor, *allowed: type) -> None:
    """Check the type of a piece."""
    if tensor.dtype not in [np.dtype(dtype) for dtype in allowed]:
        names = ", ".join(np.dtype(dtype).name for dtype in allowed)
        raise UserError(f"{tensor.file}: tensor {tensor.name!r} has type {tensor.dtype}, expected {names}")


_BLOCK = 2**20  # bytes to unpack at a time
FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)  # types of scales


def check_group(size: int, inputs: int, tensor: StoredTensor) -> int:
    """Return the number of inputs that share a scale; -1 in config.json stands for all.

    Raises:
      UserError: a size that does not divide the inputs.
    """
    size = inputs if size == -1 else size
    if size < 1 or inputs % size:
        raise UserError(
            f"{tensor.file}: tensor {tensor.name!r} has {inputs} inputs, which groups of {size} (group_size in "
            "config.json) do not divide"
        )
    return size


def nibbles(words: np.ndarray, order: tuple[int, ...] = tuple(range(8)), axis: int = -1) -> np.ndarray:
    """Unpack 32-bit words into eight codes from 0 to 15 each, as uint8, along `axis`.

    `order`: the place among the eight of each four bits, lowest first.
    """
    axis %= words.ndim
    unsigned = words.view(np.uint32)
    out = np.empty((*words.shape[: axis + 1], 8, *words.shape[axis + 1 :]), np.uint8)
    step = max(1, _BLOCK // max(1, words.nbytes // max(1, len(words))))
    for start in range(0, len(words), step):
        rows = slice(start, start + step)
        for bits, place in enumerate(order):
            found = unsigned[rows] >> np.uint32(4 * bits)
            found &= np.uint32(15)
            index: tuple[Any, ...] = (rows, *(slice(None),) * axis, place)
            out[index] = found
    return out.reshape(*words.shape[:axis], -1, *words.shape[axis + 1 :])


def centred(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes from 0 as int8 from -2^(bits-1); in place where they may be written to."""
    out = codes if codes.flags.writeable else None
    return np.subtract(codes, np.uint8(2 ** (bits - 1)), out=out).view(np.int8)  # wraps around
