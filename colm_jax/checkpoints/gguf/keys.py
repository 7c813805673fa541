"""Typed access to the metadata of a GGUF file's architecture; a key that nothing reads is an error."""

import math
from typing import Any

import numpy as np

from colm_jax.checkpoints.gguf.header import Header, Strings
from colm_jax.errors import UserError

REQUIRED = object()  # as a default: the key must be there
# Keys of an architecture that change no output, or that repeat what the tensors' shapes say.
_UNUSED = frozenset(
    "vocab_size tensor_data_layout rope.scaling.finetuned rope.dimension_count_swa attention.key_length_swa "
    "attention.value_length_swa".split()
)


class Keys:
    """Typed access to the metadata of a file's architecture; records which keys are read."""

    def __init__(self, header: Header):
        """Read `general.architecture`.

        Raises:
          UserError: the file has no architecture, or is no language model.
        """
        self.header = header
        kind = header.metadata.get("general.type", "model")
        if not isinstance(kind, str) or kind != "model":
            raise header.error(f"general.type is {kind!r:.80}; only models are read, no adapters or projectors")
        found = header.metadata.get("general.architecture")
        if not isinstance(found, str):
            raise header.error(f"general.architecture is missing or no string: {found!r:.80}")
        self.architecture = found
        self.read: set[str] = set()

    def error(self, key: str, text: str) -> UserError:
        """Return an error that names the file and the key; the caller raises it."""
        return self.header.error(f"{self.architecture}.{key} {text}")

    def given(self, key: str) -> Any:
        """Return a value, or None; of an array whose entries are equal, that entry."""
        self.read.add(key)
        value = self.header.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            return value[0].item()
        return value

    def integer(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a whole number from 0."""
        value = self._present(key, default)
        if value is default:
            return value
        if isinstance(value, np.ndarray):
            raise self.error(key, "differs between layers, which is not supported")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise self.error(key, f"is no whole number: {value!r:.80}")
        return value

    def depth(self) -> int:
        """Return the number of layers, which is at most that of the file's tensors: lists have an entry for each."""
        depth, tensors = self.integer("block_count"), len(self.header.tensors)
        if depth > tensors:
            raise self.error("block_count", f"is {depth}, but the file has only {tensors} tensors")
        return depth

    def number(self, key: str, default: Any = REQUIRED) -> Any:
        """Return a number; a 32-bit float as the shortest decimal that stands for it, as people wrote it."""
        value = self._present(key, default)
        if value is default:
            return value
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.error(key, f"is no number: {value!r:.80}")
        with np.errstate(over="ignore"):
            short = np.float32(value)
        return float(str(short)) if float(short) == value else float(value)

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self._present(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is no string: {value!r:.80}")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Check a key of which only these values are supported; it may be missing."""
        value = self.given(key)
        if value is not None and not any(type(value) is type(other) and value == other for other in allowed):
            raise self.error(key, f"is {value!r:.80}, and only {allowed[0]!r} is supported")

    def flags(self, key: str, count: int) -> list[bool] | None:
        """Return a boolean for each layer, or None."""
        self.read.add(key)
        value = self.header.metadata.get(f"{self.architecture}.{key}")
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype != bool or len(value) != count:
            raise self.error(key, f"is no list of {count} booleans: {value!r:.80}")
        return [bool(flag) for flag in value]

    def shape(self, name: str, length: int) -> tuple[int, ...]:
        """Return the shape of a tensor with this many axes."""
        tensor = self.header.tensors.get(name)
        if tensor is None:
            raise self.header.error(f"tensor {name!r} is missing")
        if len(tensor.shape) != length:
            raise self.header.error(f"tensor {name!r} has shape {list(tensor.shape)}, expected {length} axes")
        return tensor.shape

    def done(self) -> None:
        """Check the keys that were not read.

        Raises:
          UserError: a key of the architecture that could change the output.
        """
        self.only("attention.causal", True)
        start = f"{self.architecture}."
        for name, value in self.header.metadata.items():
            key = name.removeprefix(start)
            if name.startswith(start) and key not in self.read | _UNUSED:
                shown = f"{len(value)} values" if isinstance(value, np.ndarray | Strings) else repr(value)[:80]
                raise self.error(key, f"({shown}) is not supported; the model may need it")

    def _present(self, key: str, default: Any) -> Any:
        value = self.given(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise self.error(key, "is missing")
        return default
