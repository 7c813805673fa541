"""gpt-oss's networks: checkpoints store [in, out] with gate and up interleaved, GGUF [out, in] with both apart."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES

from colm_jax.checkpoints.gguf.header import Header, Stored
from colm_jax.checkpoints.gguf.tensors import check_finite, decode, read_bytes, read_rows


@dataclass(frozen=True)
class Stack:
    """One stored tensor of all networks, or two with interleaved outputs, transposed."""

    name: str  # in a Hugging Face checkpoint
    stored: tuple[Stored, ...]  # each [networks, out, in], or of biases [networks, out]
    shape: tuple[int, ...]  # [networks, in, outs], of one network [in, outs]; of biases [networks, outs]
    network: int | None = None

    @property
    def file(self) -> Path:
        """The file."""
        return self.stored[0].file

    @property
    def type(self) -> str:
        """The type in the file, as llama.cpp names it."""
        return self.stored[0].type.name

    @property
    def dtype(self) -> np.dtype:
        """The type of what `rows` returns."""
        return np.dtype(np.float32)

    @property
    def offset(self) -> int:
        """The place of the first byte in the file."""
        return self.stored[0].offset

    @property
    def bytes(self) -> int:
        """The size in the file."""
        whole = sum(stored.bytes for stored in self.stored)
        return whole if self.network is None else whole // self.stored[0].shape[0]

    def named(self, name: str) -> "Stack":
        """Return the same tensor under another name."""
        return replace(self, name=name)

    def slab(self, number: int) -> "Stack":
        """Return one network."""
        return replace(self, shape=self.shape[1:], network=number)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows start..stop-1: inputs of one network, or networks.

        Raises:
          UserError: a truncated file, or values that are not finite.
        """
        if len(self.shape) > 2:
            return np.stack([self.slab(number).rows(0, self.shape[1]) for number in range(start, stop)])
        if self.network is None:
            parts = [read_rows(stored, start, stop).astype(np.float32) for stored in self.stored]
        else:
            parts = [_columns(stored, self.network, start, stop).T for stored in self.stored]
        return np.stack(parts, axis=-1).reshape(stop - start, self.shape[-1])


def _columns(stored: Stored, network: int, start: int, stop: int) -> np.ndarray:
    """Return columns start..stop-1 of one network's matrix, [out, stop - start]; only their blocks are dequantised."""
    block, size = GGML_QUANT_SIZES[stored.type]
    first, last, out = start // block, -(-stop // block), stored.shape[1]
    data = read_bytes(stored, network * out, (network + 1) * out).reshape(out, -1, size)[:, first:last]
    values = decode(stored, np.ascontiguousarray(data).reshape(out, -1)).astype(np.float32)
    check_finite(stored, values)
    return values[:, start - first * block : stop - first * block]


def gpt_oss_stacks(header: Header, layer: str) -> list[Stack]:
    """Return the networks of a layer: kernels and biases.

    Raises:
      UserError: a tensor is missing or has another shape.
    """
    experts = f"model.layers.{layer}.mlp.experts."
    found = []
    for name, stems in (("gate_up_proj", ("ffn_gate_exps", "ffn_up_exps")), ("down_proj", ("ffn_down_exps",))):
        for kind, ending, axes in (("weight", "", 3), ("bias", "_bias", 2)):
            stored: list[Stored] = []
            for stem in stems:
                tensor = header.tensors.get(f"blk.{layer}.{stem}.{kind}")
                if tensor is None or len(tensor.shape) != axes or (stored and tensor.shape != stored[0].shape):
                    shape = None if tensor is None else list(tensor.shape)
                    raise header.error(f"tensor 'blk.{layer}.{stem}.{kind}' has shape {shape}, expected {axes} axes")
                stored.append(tensor)
            networks, out, *inputs = stored[0].shape
            found.append(Stack(f"{experts}{name}{ending}", tuple(stored), (networks, *inputs, len(stems) * out)))
    return found
