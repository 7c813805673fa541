"""Read tensors from disk into device shards: only the byte ranges that this host's devices need, a block at a time.

Host memory: one tensor's shards and a few blocks (see `Storage.read_size`).
"""

import json
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from colm_jax.checkpoints.directory import open_weights, weight_files
from colm_jax.checkpoints.families import Stored
from colm_jax.errors import UserError
from colm_jax.storage import read_range, storage_of

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

Ranges = tuple[tuple[int, int], ...]  # start and stop, an axis each


@dataclass(frozen=True)
class TensorOnDisk:
    """The location of a tensor's bytes."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

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


def tensors_on_disk(directory: Path) -> list[TensorOnDisk]:
    """Return the location of every tensor of a checkpoint, from the files' headers.

    Raises:
      UserError: a missing or damaged file, or a tensor that is not floating-point.
    """
    found = []
    for file in weight_files(directory):
        with open_weights(file):  # the library has checked header, sizes and offsets
            size = int.from_bytes(read_range(file, 0, 8), "little")
            header = json.loads(read_range(file, 8, 8 + size))
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            if facts["dtype"] not in _DTYPES:
                raise UserError(
                    f"{file}: tensor {name!r} has type {facts['dtype']}; only {', '.join(_DTYPES)} are supported"
                )
            dtype, start = np.dtype(_DTYPES[facts["dtype"]]), facts["data_offsets"][0]
            found.append(TensorOnDisk(name, file, dtype, tuple(facts["shape"]), 8 + size + start))
    return found


def same_values(first: TensorOnDisk, second: TensorOnDisk) -> bool:
    """Return whether two tensors hold the same values, whatever their types, reading a block of rows at a time."""
    if first.shape != second.shape:
        return False
    for start, stop in _blocks(first, 0, first.shape[0]):
        if not np.array_equal(first.rows(start, stop).astype(np.float64), second.rows(start, stop).astype(np.float64)):
            return False
    return True


def _blocks(tensor: TensorOnDisk, first: int, last: int) -> list[tuple[int, int]]:
    """Split rows first..last-1 into ranges of about `Storage.read_size` bytes."""
    step = max(1, storage_of(tensor.file).read_size // max(1, tensor.bytes // max(1, tensor.shape[0])))
    return [(start, min(start + step, last)) for start in range(first, last, step)]


def read_array(
    tensor: TensorOnDisk,
    stored: Stored,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    pool: Executor,
) -> jax.Array:
    """Read a stored tensor as a parameter (or one layer of it), sharded by `sharding`.

    Args:
      tensor: with at least as many rows as `shape` needs (the original's format has one more).
      stored: the layout on disk.
      shape: the shape of the parameter.
      dtype: the type to convert to.
      sharding: the sharding of the parameter.
      pool: threads that read blocks.

    Raises:
      UserError: a value that is not finite in `dtype`, or a truncated file.
    """
    places = {
        device: tuple(s.indices(size)[:2] for s, size in zip(index or (), shape))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    shards = {ranges: _aligned(tuple(stop - start for start, stop in ranges), dtype) for ranges in places.values()}
    targets = [(_stored_ranges(stored, ranges, shape), _as_stored(stored, shard)) for ranges, shard in shards.items()]
    first, last = min(rows.start for (rows, _), _ in targets), max(rows.stop for (rows, _), _ in targets)

    def fill(start: int, stop: int) -> None:
        block = tensor.rows(start, stop)
        with np.errstate(over="ignore"):  # overflow is reported below
            block = block.astype(dtype, copy=False)
        if not np.isfinite(block).all():
            raise UserError(f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite values (read as {dtype})")
        for (rows, columns), shard in targets:
            low, high = max(start, rows.start), min(stop, rows.stop)
            if low < high:
                part = block[low - start : high - start]
                shard[low - rows.start : high - rows.start] = part if columns is None else part[:, columns]

    list(pool.map(lambda rows: fill(*rows), _blocks(tensor, first, last)))
    parts = [jax.device_put(shards[ranges], device) for device, ranges in places.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
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
