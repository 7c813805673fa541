"""Load and save decoders as Hugging Face directories, by each family's table of names; strict in both directions.

Reads config.json and *.safetensors (one file, or shards with an index), each tensor straight into the shards of this
host's devices. A directory in the original Co-LLM's format (LM head and embedding with one extra last row, the deferral
token) is split into a plain base and its gate: see `load_model`.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from colm_jax.checkpoints.directory import weight_map
from colm_jax.checkpoints.families import from_huggingface, model_tensor
from colm_jax.checkpoints.gguf import packed as gguf
from colm_jax.checkpoints.layout import abstract_decoder, by_path, layout_of
from colm_jax.checkpoints.quantized.kernel import forms, read_kernel
from colm_jax.checkpoints.quantized.packed import Opened, PackedOnDisk
from colm_jax.checkpoints.quantized.scheme import read_scheme
from colm_jax.checkpoints.reader import (
    FLOATS,
    StoredPart,
    StoredTensor,
    TensorOnDisk,
    read_array,
    same_values,
    tensors_on_disk,
)
from colm_jax.console import Progress
from colm_jax.errors import UserError
from colm_jax.models.config import ModelConfig
from colm_jax.models.decoder import Decoder
from colm_jax.models.quantize import QUANTIZED, quantize_kernel
from colm_jax.models.quantized import Quantized, widened
from colm_jax.parallel import is_first, spec_of, to_host
from colm_jax.settings.models import FLOAT_TYPES
from colm_jax.storage import read_json, replacing, shown, source_files
from colm_jax.text.special import DEFER_TOKEN

DTYPES = {name: getattr(jnp, name) for name in FLOAT_TYPES}

# Buffers in old checkpoints that hold no weights.
_NO_WEIGHTS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"
_READERS = 4  # threads


@dataclass(frozen=True)
class Deferral:
    """The deferral token's rows in the original's format: the last of the LM head (the gate) and of the embedding."""

    gate: np.ndarray  # [D]
    embedding: np.ndarray  # [D]


def read_config(directory: Path) -> ModelConfig:
    """Return the configuration of the directory's model as stored (in the original's format with the deferral row)."""
    path = directory / "config.json"
    source = str(shown(directory) if source_files(directory) else path)
    read_scheme(read_json(path), source)  # refuses what cannot be read
    return from_huggingface(read_json(path), source)


def match_tensors(directory: Path, values: bool = True) -> list[StoredPart]:
    """Match every tensor of a checkpoint with its parts of a decoder, in the order on disk.

    Only headers are read, except that with `values` a tied model's `lm_head.weight`, if stored, is compared with the
    embedding.

    Raises:
      UserError: naming the unknown, duplicate or missing tensor, the wrong shape, an index that does not fit the files,
        or a tied model with a head of its own.
    """
    config = read_config(directory)
    wanted, found = layout_of(config), dict[str, StoredTensor]()
    stored_config = read_json(directory / "config.json")
    scheme = read_scheme(stored_config, str(directory / "config.json"))
    on_disk = tensors_on_disk(directory, packed=scheme is not None)
    on_disk = [gguf.packed(tensor) for tensor in on_disk if not _NO_WEIGHTS.fullmatch(tensor.name)]
    _check_index(directory, on_disk)
    for tensor in on_disk if scheme is None else scheme.collect(on_disk):
        name = model_tensor(stored_config, tensor.name)
        if name is None:
            continue
        tensor = tensor.named(name)
        if name in found:
            raise UserError(f"{tensor.file}: tensor {name!r} is also in {found[name].file.name}; remove one of them")
        if name == _HEAD and config.tied:
            found[name] = tensor
            continue
        if name not in wanted:
            raise UserError(f"{tensor.file}: unknown tensor {name!r}; config.json describes no such weight")
        expected = wanted[name].shape
        if tensor.shape != expected:
            raise UserError(f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}, expected {list(expected)}")
        if isinstance(tensor, TensorOnDisk) and tensor.dtype not in FLOATS.values():
            raise UserError(f"{tensor.file}: tensor {name!r} has type {tensor.dtype}, and no scales; expected floats")
        found[name] = tensor
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{shown(directory)}: tensor {missing[0]!r} is missing ({len(missing)} of {len(wanted)} are)")
    if values and config.tied and _HEAD in found:
        _check_tied_head(found[_HEAD], found[_TABLE])
    in_order = sorted(wanted, key=lambda name: (found[name].file, found[name].offset))
    return [StoredPart.of(found[name], part) for name in in_order for part in wanted[name].parts]


def _check_tied_head(head: StoredTensor, table: StoredTensor) -> None:
    """Check that the stored head of a tied model equals its embedding, since programs differ in which they use."""
    if not same_values(head, table):
        raise UserError(
            f"{head.file}: config.json ties the head to the embedding (tie_word_embeddings is true or left out), but "
            f"{head.name!r} {list(head.shape)} differs from {table.name!r} {list(table.shape)}; set "
            "tie_word_embeddings to false to use it, or remove it"
        )


def _check_index(directory: Path, on_disk: Sequence[StoredTensor]) -> None:
    """Check that each file holds the tensors that the index lists for it."""
    held = {(tensor.file.name, tensor.name) for tensor in on_disk}
    for name, file in (weight_map(directory) or {}).items():
        if (file, name) not in held and not _NO_WEIGHTS.fullmatch(name):
            raise UserError(
                f"{directory / file}: tensor {name!r}, listed in the index of the weights, is not in this file; the "
                "file or the index belongs to another checkpoint"
            )


def load_model(
    directory: Path,
    dtype: str,
    mesh: jax.sharding.Mesh,
    tokenizer_size: int | None = None,
    quantize: str | None = None,
    stacked: bool = True,
    progress: Progress = lambda done, total: None,
    packed: bool = False,
) -> tuple[Decoder, Deferral | None]:
    """Load a decoder onto `mesh`; the weights are converted to `dtype`.

    Args:
      directory: a local Hugging Face directory.
      dtype: "float32", "bfloat16" or "float16".
      mesh: devices to shard the parameters over, by their logical axes.
      tokenizer_size: vocabulary size without the deferral token, for a model in the original Co-LLM's format.
      quantize: "int8" or "int4": store the kernels of linear layers in 8 or 4 bits.
      stacked: stack the layers' parameters (for training); False: a list of layers (for decoding).
      progress: callback(bytes read, total).
      packed: keep the kernels of a quantised checkpoint as they are stored; not with `quantize`. Embeddings, heads and
        kernels that do not fit (see `quantized.kernel`) are dequantised. Without `packed`, everything is dequantised.

    Returns:
      The decoder, and the deferral rows if `tokenizer_size` was given.

    Raises:
      UserError: as `match_tensors`, or naming the tensor whose value is not finite.
    """
    matched = match_tensors(directory)
    config, extra = read_config(directory), dict[str, np.ndarray]()
    if tokenizer_size is not None:
        if config.tied or config.vocab_size != tokenizer_size + 1:
            raise UserError(
                f"{shown(directory)}: the tokenizer ends in {DEFER_TOKEN}, so an untied head of {tokenizer_size + 1} "
                f"rows is expected; config.json has vocab_size={config.vocab_size}, tie_word_embeddings={config.tied}"
            )
        config = replace(config, vocab_size=tokenizer_size)
        for held in matched:
            if held.part.path in ("embedding", "head"):
                extra[held.part.path] = held.rows(tokenizer_size, tokenizer_size + 1)[0].astype(np.float32)
    matched = parts_of(config, matched, stacked)
    graph, state = nnx.split(abstract_decoder(config, DTYPES[dtype], stacked))
    kept = forms(matched, by_path(state), mesh) if packed and quantize is None else {}
    loaded = _read_parameters(matched, by_path(state), mesh, quantize, set(kept), progress)
    flat = [(path, variable.replace(loaded[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    decoder = nnx.merge(graph, nnx.from_flat_state(flat))
    del loaded, flat  # a transposed kernel takes the place of the array
    if not stacked:
        decoder = decoder.for_decoding()
    return decoder, Deferral(gate=extra["head"], embedding=extra["embedding"]) if extra else None


def parts_of(config: ModelConfig, matched: Sequence[StoredPart], stacked: bool) -> list[StoredPart]:
    """Return the parts that `match_tensors` found, in its order, as those of a `stacked` decoder or of another."""
    parts = {name: iter(layout.parts) for name, layout in layout_of(config, stacked).items()}
    return [replace(held, part=next(parts[held.tensor.name])) for held in matched]


def _read_parameters(
    matched: list[StoredPart],
    abstract: dict[str, Any],
    mesh: jax.sharding.Mesh,
    quantize: str | None,
    kept: set[str],
    progress: Progress,
) -> dict[str, Any]:
    """Read every parameter onto the mesh, one tensor at a time, its blocks in parallel; return them by path.

    `kept`: paths of those that stay as a quantised checkpoint stores them.
    """
    loaded: dict[str, Any] = {}
    last: tuple[PackedOnDisk, Opened] | None = None  # several parts of a tensor follow each other
    total, done = sum(held.bytes for held in matched), 0
    with ThreadPoolExecutor(_READERS) as pool:  # one pool for all: each thread keeps some memory
        for held in matched:
            part, size = held.part, held.bytes
            variable, layers = abstract[part.path], len(part.index)
            axes = variable.get_metadata()["axes"]
            sharding = jax.sharding.NamedSharding(mesh, spec_of(mesh, axes[layers:], part.shape))
            if isinstance(held.tensor, PackedOnDisk):
                if last is None or last[0].pieces != held.tensor.pieces:
                    last = None  # its memory is free before the next is read
                    last = held.tensor, held.tensor.opened()
                held = replace(held, tensor=last[1])
            value: Any
            if part.path in kept:
                assert last is not None
                value = read_kernel(held, last[1], variable.dtype, axes[layers:], mesh)
            else:
                value = read_array(held, variable.dtype, sharding, pool)
            if quantize is not None and QUANTIZED.fullmatch(part.path):
                value = quantize_kernel(value, part.stored.inputs, quantize)
            if layers:
                whole = loaded.get(part.path)
                if whole is None:
                    whole = _empty(value, variable.shape[:layers], mesh, axes)
                value = _place(whole, value, part.index)
            loaded[part.path] = jax.block_until_ready(value)  # otherwise pending copies fill the host's memory
            done += size
            progress(done, total)
    return loaded


def _empty(value, leading: tuple[int, ...], mesh, axes):
    """Return zeros for a parameter with all its layers, of which `value` is one."""

    def make(leaf):
        shape = (*leading, *leaf.shape)
        return jnp.zeros(shape, leaf.dtype, device=jax.sharding.NamedSharding(mesh, spec_of(mesh, axes, shape)))

    return jax.tree.map(make, value)


@partial(jax.jit, donate_argnums=0)
def _place(stacked, value, index):
    """Write one layer into a stacked parameter, in place."""

    def put(whole, part):
        start = (*index, *(0,) * part.ndim)
        return jax.lax.dynamic_update_slice(whole, part.reshape((1,) * len(index) + part.shape), start)

    return jax.tree.map(put, stacked, value)


def to_tensors(decoder: Decoder, dtype: str | None = None) -> dict[str, np.ndarray]:
    """Return the decoder's weights under their Hugging Face names, as NumPy arrays; the inverse of `load_model`.

    Kernels in few bits are dequantised.

    With several processes, all must call this; only the first receives the tensors.
    """
    arrays = {path: variable.get_value() for path, variable in by_path(nnx.state(decoder)).items()}
    tensors = {}
    for name, layout in layout_of(decoder.config).items():
        whole = None
        for part in layout.parts:
            value = jax.tree.map(lambda leaf, index=part.index: leaf[index], arrays[part.path])
            if isinstance(value, Quantized):
                value = widened(value, part.stored.inputs, decoder.dtype)
            value = to_host(value)  # one layer at a time: each device briefly holds all of it
            if not is_first():
                continue
            value = value if dtype is None else value.astype(DTYPES[dtype])
            shape = part.stored.shape(part.shape)
            value = value.reshape(shape) if part.stored.inputs == 0 else value.reshape(shape[::-1]).T
            if shape == layout.shape:
                whole = np.ascontiguousarray(value)
                continue
            whole = np.empty(layout.shape, value.dtype) if whole is None else whole
            slab = whole if part.slab is None else whole[part.slab]
            slab[part.within(slab.shape)] = value
        if whole is not None:
            tensors[name] = whole
    return tensors


def save_tensors(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Write a safetensors file atomically."""
    with replacing(path) as beside:
        save_file(tensors, beside, metadata={"format": "pt"})
