"""Read the header of a GGUF file: metadata, and the type, shape and place of every tensor.

Files are not trusted. Every count and size is compared with what the file can hold before anything is allocated, and
the file is read by ranges, so that of a file in a bucket only the header is fetched.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from colm_jax.errors import UserError
from colm_jax.storage import read_range, size_of

Type = GGMLQuantizationType
# Types whose values can be read. The others (IQ..., TQ..., NVFP4, integers) are refused by name.
TYPES = frozenset(
    {
        *(Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0),
        *(Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.MXFP4),
    }
)
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")  # a part's name
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DIMENSIONS = 4
_MOST_PARTS = 1000
_LARGEST_ALIGNMENT = 1 << 16
_LONGEST_NAME = 1024  # bytes of a key or of a tensor's name; llama.cpp allows a tensor 63
_WINDOW = 1 << 20  # bytes to fetch at once
_SCALARS: dict[int, np.dtype] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True)
class Strings:
    """An array of strings, decoded when it is iterated over."""

    key: str
    file: Path
    count: int
    data: bytes  # lengths and UTF-8, as stored

    def __len__(self) -> int:
        """The number of strings."""
        return self.count

    def __iter__(self) -> Iterator[str]:
        """Decode one string after another.

        Raises:
          UserError: not UTF-8.
        """
        place = 0
        for number in range(self.count):
            (length,) = struct.unpack_from("<Q", self.data, place)
            try:
                yield self.data[place + 8 : place + 8 + length].decode("utf-8")
            except UnicodeDecodeError:
                raise _damaged(self.file, f"{self.key}[{number}] is not UTF-8") from None
            place += 8 + length


Value = int | float | bool | str | np.ndarray | Strings


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    name: str
    file: Path
    type: GGMLQuantizationType
    shape: tuple[int, ...]  # as NumPy has it: the columns, in blocks, are last
    offset: int  # of its first byte in the file

    @property
    def row_bytes(self) -> int:
        """The bytes of a row; of an element, for a vector."""
        block, size = GGML_QUANT_SIZES[self.type]
        return (self.shape[-1] if len(self.shape) > 1 else 1) // block * size

    @property
    def bytes(self) -> int:
        """The size in the file."""
        block, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


@dataclass(frozen=True)
class Header:
    """The content of a GGUF file, or of all parts of one that is split, without the tensors' values."""

    file: Path  # the first part
    files: tuple[Path, ...]
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Stored]

    def error(self, text: str) -> UserError:
        """Return an error that names the file; the caller raises it."""
        return UserError(f"{self.file}: {text}")


def _damaged(file: Path, text: str) -> UserError:
    return UserError(f"{file}: not a readable GGUF file: {text} (truncated or damaged?)")


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a file by that of the first; a file that is not split is its only part.

    Raises:
      UserError: the name is that of a later part.
    """
    found = SPLIT.fullmatch(name)
    if found is None:
        return [name]
    stem, number, count = found[1], int(found[2]), int(found[3])
    if not 1 <= count <= _MOST_PARTS:
        raise UserError(f"{name}: is one of {count} parts; from 1 to {_MOST_PARTS} are supported")
    if number != 1:
        raise UserError(f"{name}: is part {number} of {count}; name the first one, {stem}-00001-of-{count:05}.gguf")
    return [f"{stem}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]


def parts_of(file: Path) -> list[Path]:
    """Return all parts of a file, as `part_names`.

    Raises:
      UserError: the file is a later part, or a part is missing.
    """
    parts = [file.with_name(name) for name in part_names(file.name)]
    for part in parts:
        if not part.is_file():
            raise UserError(f"{part}: is missing; {file.name} has {len(parts)} parts, and all must be in its directory")
    return parts


def read_header(file: Path) -> Header:
    """Read the header of a file and of its other parts.

    Raises:
      UserError: a file that is missing, damaged, truncated, of another version or byte order, or that holds a tensor
        of an unsupported type.
    """
    files = parts_of(file)
    metadata: dict[str, Value] = {}
    tensors: dict[str, Stored] = {}
    for number, part in enumerate(files):
        found, held = _read_file(part)
        count = _whole_number(part, found, "split.count", 1)
        if count not in (0, 1, len(files)) or (number and count != len(files)):
            raise UserError(f"{part}: is part of {count} files by its metadata, and of {len(files)} by its name")
        for name, tensor in held.items():
            if name in tensors:
                raise UserError(f"{part}: tensor {name!r} is also in {tensors[name].file.name}")
            tensors[name] = tensor
        metadata = metadata or found
    expected = _whole_number(file, metadata, "split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise UserError(f"{file}: its parts should hold {expected} tensors and hold {len(tensors)}")
    return Header(file, tuple(files), metadata, tensors)


def _whole_number(file: Path, metadata: Mapping[str, Value], key: str, default: int) -> int:
    found = metadata.get(key, default)
    if not isinstance(found, int) or isinstance(found, bool):
        raise _damaged(file, f"{key} is no whole number: {found!r:.80}")
    return found


class _Cursor:
    """Reads a file in order, by windows; never past its end."""

    def __init__(self, file: Path):
        self.file, self.size = file, size_of(file)
        self.place = 0
        self._window, self._start = b"", 0

    def need(self, count: int, size: int, what: str) -> None:
        """Check that the file has room for `count` items of at least `size` bytes each."""
        if count * size > self.size - self.place:
            raise self.damaged(
                f"{what}: {count} items of {size} bytes or more, {self.size - self.place} bytes are left"
            )

    def take(self, count: int, what: str) -> bytes:
        """Return the next bytes."""
        self.need(count, 1, what)
        first = self.place - self._start
        if first < 0 or first + count > len(self._window):
            stop = min(self.size, self.place + max(count, _WINDOW))
            self._window, self._start, first = read_range(self.file, self.place, stop), self.place, 0
            if len(self._window) < count:
                raise self.damaged(f"{what} is cut off")
        self.place += count
        return self._window[first : first + count]

    def number(self, format_: str, what: str) -> Any:
        """Return the next number."""
        return struct.unpack(f"<{format_}", self.take(struct.calcsize(f"<{format_}"), what))[0]

    def string(self, what: str) -> str:
        """Return the next string."""
        return self._text(self.number("Q", what), what)

    def _text(self, length: int, what: str) -> str:
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8") from None

    def name(self, what: str) -> str:
        """Return the next string, the name of something."""
        length = self.number("Q", what)
        if length > _LONGEST_NAME:
            raise self.damaged(f"{what} has {length} bytes; at most {_LONGEST_NAME} are allowed")
        return self._text(length, what)

    def strings(self, key: str, count: int) -> Strings:
        """Return an array of strings."""
        self.need(count, 8, key)
        start = self.place
        for _ in range(count):
            length = int.from_bytes(self.take(8, key), "little")
            self.need(length, 1, key)
            self.place += length
        return Strings(key, self.file, count, read_range(self.file, start, self.place))

    def damaged(self, text: str) -> UserError:
        """Return an error that names the file; the caller raises it."""
        return _damaged(self.file, text)


def _read_file(file: Path) -> tuple[dict[str, Value], dict[str, Stored]]:
    """Read the header of one file."""
    cursor = _Cursor(file)
    if cursor.take(4, "the magic number") != _MAGIC:
        raise cursor.damaged("it does not begin with GGUF")
    version = cursor.number("I", "the version")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise UserError(f"{file}: a big-endian GGUF file; only little-endian ones are read")
    if version not in _VERSIONS:
        raise UserError(f"{file}: GGUF version {version}; only 2 and 3 are read (convert the model again)")
    tensors, keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    cursor.need(keys, 8 + 4 + 1, "metadata")
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = cursor.name("the name of a key")
        if key in metadata:
            raise cursor.damaged(f"key {key!r} occurs twice")
        metadata[key] = _read_value(cursor, key)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r:.80}, no power of two up to {_LARGEST_ALIGNMENT}")
    cursor.need(tensors, 8 + 4 + 8 + 4 + 8, "tensors")
    infos = [_read_tensor(cursor) for _ in range(tensors)]
    start = -(-cursor.place // alignment) * alignment
    found: dict[str, Stored] = {}
    for info in infos:
        if info.name in found:
            raise cursor.damaged(f"tensor {info.name!r} occurs twice")
        if info.offset % alignment:
            raise cursor.damaged(f"tensor {info.name!r} is at {info.offset}, which {alignment} does not divide")
        if start + info.offset + info.bytes > cursor.size:
            raise cursor.damaged(
                f"tensor {info.name!r} ends at byte {start + info.offset + info.bytes} of {cursor.size}"
            )
        found[info.name] = Stored(info.name, file, info.type, info.shape, start + info.offset)
    before: Stored | None = None
    for tensor in sorted(found.values(), key=lambda t: t.offset):
        if before is not None and before.offset + before.bytes > tensor.offset:
            raise cursor.damaged(f"tensors {before.name!r} and {tensor.name!r} overlap")
        before = tensor
    return metadata, found


def _read_value(cursor: _Cursor, key: str) -> Value:
    kind = cursor.number("I", key)
    if kind == GGUFValueType.STRING:
        return cursor.string(key)
    if kind != GGUFValueType.ARRAY:
        return _read_numbers(cursor, key, kind, 1)[0].item()
    kind, count = cursor.number("I", key), cursor.number("Q", key)
    if kind == GGUFValueType.ARRAY:
        raise cursor.damaged(f"{key} is an array of arrays")
    return cursor.strings(key, count) if kind == GGUFValueType.STRING else _read_numbers(cursor, key, kind, count)


def _read_numbers(cursor: _Cursor, key: str, kind: int, count: int) -> np.ndarray:
    if kind not in _SCALARS:
        raise cursor.damaged(f"{key} has type {kind}, which GGUF does not define")
    dtype = _SCALARS[kind]
    cursor.need(count, dtype.itemsize, key)
    data = cursor.take(count * dtype.itemsize, key)
    if dtype.kind == "b" and data.strip(b"\0\1"):
        raise cursor.damaged(f"{key} is neither true nor false")
    return np.frombuffer(data, dtype)


def _read_tensor(cursor: _Cursor) -> Stored:
    """Read a tensor's description; its offset is within the part of the file that holds the tensors."""
    name = cursor.name("the name of a tensor")
    count = cursor.number("I", name)
    if not 1 <= count <= _DIMENSIONS:
        raise cursor.damaged(f"tensor {name!r} has {count} dimensions")
    shape = tuple(cursor.number("Q", name) for _ in range(count))[::-1]
    kind, offset = cursor.number("I", name), cursor.number("Q", name)
    if kind not in set(Type):
        raise cursor.damaged(f"tensor {name!r} has type {kind}, which GGUF does not define")
    if Type(kind) not in TYPES:
        known = ", ".join(sorted(t.name for t in TYPES))
        raise UserError(f"{cursor.file}: tensor {name!r} has type {Type(kind).name}; only {known} are supported")
    block, _ = GGML_QUANT_SIZES[Type(kind)]
    if 0 in shape or shape[-1] % block or (block > 1 and count == 1):
        raise cursor.damaged(f"tensor {name!r} has shape {list(shape)}, which type {Type(kind).name} cannot have")
    return Stored(name, cursor.file, Type(kind), shape, offset)
