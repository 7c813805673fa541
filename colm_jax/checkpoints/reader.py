"""Read tensors from disk into device shards: only the byte ranges that this host's devices need, a block at a time.

Host memory: one tensor's shards and a few blocks (see `Storage.read_size`).
"""

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import jax
import ml_dtypes
import numpy as np

from colm_jax.checkpoints.directory import open_weights, weight_files
from colm_jax.checkpoints.families import Stored
from colm_jax.checkpoints.gguf import directory as gguf
from colm_jax.checkpoints.layout import Part
from colm_jax.errors import UserError
from colm_jax.storage import read_range, source_files, storage_of

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Types of the pieces of quantised weights.
_PACKED = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
}

Ranges = tuple[tuple[int, int], ...]  # start and stop, an axis each


class StoredTensor(Protocol):
    """A tensor of a checkpoint, read by rows; every file format has its own."""

    @property
    def name(self) -> str:
        """The name, as the family's table has it."""

    @property
    def file(self) -> Path:
        """The file, for errors."""

    @property
    def dtype(self) -> np.dtype:
        """The type of what `rows` returns."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""

    @property
    def type(self) -> str:
        """The type in the file, as its format names it."""

    @property
    def offset(self) -> int:
        """The place of the first byte in the file."""

    @property
    def bytes(self) -> int:
        """The size in the file."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows start..stop-1 (elements, of a vector)."""

    def slab(self, number: int) -> "StoredTensor":
        """Return one entry of the leading axis, as a tensor."""

    def named(self, name: str) -> "StoredTensor":
        """Return the same tensor under another name."""


@dataclass(frozen=True)
class TensorOnDisk:
    """The location of a tensor's bytes in a safetensors file."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def type(self) -> str:
        """The type, as NumPy names it."""
        return str(self.dtype)

    @property
    def bytes(self) -> int:
        """The size in bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows start..stop-1 (elements, of a vector) by their byte range."""
        row = self.shape[1:]
        width = self.dtype.itemsize * int(np.prod(row))
        data = read_range(self.file, self.offset + start * width, self.offset + stop * width)
        if len(data) != (stop - start) * width:
            raise UserError(f"{self.file}: ends within tensor {self.name!r} (truncated?)")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *row)

    def named(self, name: str) -> "TensorOnDisk":
        """Return the same tensor under another name."""
        return replace(self, name=name)

    def slab(self, number: int) -> "TensorOnDisk":
        """Return one entry of the leading axis, as a tensor."""
        shape = self.shape[1:]
        offset = self.offset + number * self.dtype.itemsize * int(np.prod(shape))
        return replace(self, shape=shape, offset=offset)


@dataclass(frozen=True)
class StoredPart:
    """What a stored tensor holds of one parameter."""

    tensor: StoredTensor  # the matrix or vector; of a stack, the slab
    part: Part

    @classmethod
    def of(cls, tensor: StoredTensor, part: Part) -> "StoredPart":
        """Return a part of a whole tensor."""
        return cls(tensor if part.slab is None else tensor.slab(part.slab), part)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the stored matrix or vector, as far as it belongs to the parameter."""
        whole = self.tensor.shape
        return tuple(len(range(size)[piece]) for size, piece in zip(whole, self.part.within(whole)))

    @property
    def bytes(self) -> int:
        """The size in the file."""
        return self.tensor.bytes * int(np.prod(self.shape)) // max(1, int(np.prod(self.tensor.shape)))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows start..stop-1 (elements, of a vector)."""
        rows, *columns = self.part.within(self.tensor.shape)
        wanted = range(self.tensor.shape[0])[rows][start:stop]
        block = self.tensor.rows(wanted[0], wanted[-1] + 1)[:: wanted.step]
        return block[:, columns[0]] if columns else block


def tensors_on_disk(directory: Path, packed: bool = False) -> Sequence[StoredTensor]:
    """Return the location of every tensor of a checkpoint, from the files' headers.

    `packed`: whether the checkpoint is quantised, and may have tensors of other types than floating-point ones.

    Raises:
      UserError: a missing or damaged file, or a tensor of another type.
    """
    files, found = weight_files(directory), list[TensorOnDisk]()
    if source_files(directory):
        return gguf.tensors(directory)
    types = {**FLOATS, **_PACKED} if packed else FLOATS
    for file in files:
        with open_weights(file):  # the library has checked header, sizes and offsets
            size = int.from_bytes(read_range(file, 0, 8), "little")
            header = json.loads(read_range(file, 8, 8 + size))
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            if facts["dtype"] not in types:
                raise UserError(
                    f"{file}: tensor {name!r} has type {facts['dtype']}; only {', '.join(types)} are supported"
                )
            dtype, start = np.dtype(types[facts["dtype"]]), facts["data_offsets"][0]
            found.append(TensorOnDisk(name, file, dtype, tuple(facts["shape"]), 8 + size + start))
    return found


def same_values(first: StoredTensor, second: StoredTensor) -> bool:
    """Return whether two tensors hold the same values, whatever their types, reading a block of rows at a time."""
    if first.shape != second.shape:
        return False
    for start, stop in _blocks(first.file, first.bytes // max(1, first.shape[0]), 0, first.shape[0]):
        if not np.array_equal(first.rows(start, stop).astype(np.float64), second.rows(start, stop).astype(np.float64)):
            return False
    return True


def _blocks(file: Path, row_bytes: int, first: int, last: int) -> list[tuple[int, int]]:
    """Split rows first..last-1 into ranges of about `Storage.read_size` bytes."""
    step = max(1, storage_of(file).read_size // max(1, row_bytes))
    return [(start, min(start + step, last)) for start in range(first, last, step)]


def read_array(
    held: StoredPart,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    pool: Executor,
) -> jax.Array:
    """Read a parameter (or one layer and network of it), sharded by `sharding`.

    Args:
      held: the stored part, with at least as many rows as the parameter needs (the original's format has one more).
      dtype: the type to convert to.
      sharding: the sharding of the parameter.
      pool: threads that read blocks.

    Raises:
      UserError: a value that is not finite in `dtype`, or a truncated file.
    """
    tensor, stored, shape = held.tensor, held.part.stored, held.part.shape
    places = {
        device: tuple(s.indices(size)[:2] for s, size in zip(index or (), shape))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    shards = {ranges: aligned(tuple(stop - start for start, stop in ranges), dtype) for ranges in places.values()}
    targets = [(_stored_ranges(stored, ranges, shape), _as_stored(stored, shard)) for ranges, shard in shards.items()]
    first, last = min(rows.start for (rows, _), _ in targets), max(rows.stop for (rows, _), _ in targets)

    def fill(start: int, stop: int) -> None:
        block = held.rows(start, stop)
        with np.errstate(over="ignore"):  # overflow is reported below
            block = block.astype(dtype, copy=False)
        if not np.isfinite(block).all():
            raise UserError(f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite values (read as {dtype})")
        for (rows, columns), shard in targets:
            low, high = max(start, rows.start), min(stop, rows.stop)
            if low < high:
                part = block[low - start : high - start]
                shard[low - rows.start : high - rows.start] = part if columns is None else part[:, columns]

    row_bytes = held.bytes // max(1, held.shape[0])
    list(pool.map(lambda rows: fill(*rows), _blocks(tensor.file, row_bytes, first, last)))
    parts = [jax.device_put(shards[ranges], device) for device, ranges in places.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array, aligned so that a CPU device can use its memory without a copy."""
    size = dtype.itemsize * int(np.prod(shape))
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def _stored_ranges(stored: Stored, ranges: Ranges, shape: tuple[int, ...]) -> tuple[slice, slice | None]:
    """Return the rows and columns of the stored tensor that hold a part of the parameter; columns None for a vector."""
    if stored.layout == "same":
        return slice(*ranges[0]), slice(*ranges[1]) if len(ranges) > 1 else None
    n = stored.inputs
    return _flat(ranges[n:], shape[n:]), _flat(ranges[:n], shape[:n]) if n else None


def _flat(ranges: Ranges, shape: tuple[int, ...]) -> slice:
    """Return the flat range of axes that are stored as one; only the first is ever sharded (see `parallel.RULES`)."""
    assert all(range_ == (0, size) for range_, size in zip(ranges[1:], shape[1:]))
    rest = int(np.prod(shape[1:]))
    return slice(ranges[0][0] * rest, ranges[0][1] * rest)


def _as_stored(stored: Stored, shard: np.ndarray) -> np.ndarray:
    """Return a view of the shard in the layout of the file."""
    shape = stored.shape(shard.shape)
    return shard.reshape(shape[::-1]).T if stored.inputs else shard.reshape(shape)
