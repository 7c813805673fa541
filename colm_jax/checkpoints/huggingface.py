"""Hugging Face directories to decoders and back, by one table of names; strict in both directions.

Reads config.json and *.safetensors (one file, or shards with an index). Only safetensors: pickled weights could run
code. A directory in the original Co-LLM's format (LM head and embedding with one extra last row, the deferral token)
is taken apart into a plain base and its gate: see `load_model`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from colm_jax.errors import UserError
from colm_jax.models.config import ModelConfig
from colm_jax.models.decoder import Decoder
from colm_jax.parallel import shardings

DEFER_TOKEN = "<|defer|>"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

# Path inside Decoder -> (name in the checkpoint, kind). A name with {} is one tensor per layer; "linear" kernels are
# stored transposed, [out, in], with heads flattened into one axis.
_TABLE: dict[str, tuple[str, str]] = {
    "embedding": ("model.embed_tokens.weight", "plain"),
    "norm.scale": ("model.norm.weight", "plain"),
    "head": ("lm_head.weight", "linear"),
    "layers.attention_norm.scale": ("model.layers.{}.input_layernorm.weight", "plain"),
    "layers.attention.query": ("model.layers.{}.self_attn.q_proj.weight", "linear"),
    "layers.attention.key": ("model.layers.{}.self_attn.k_proj.weight", "linear"),
    "layers.attention.value": ("model.layers.{}.self_attn.v_proj.weight", "linear"),
    "layers.attention.out": ("model.layers.{}.self_attn.o_proj.weight", "linear"),
    "layers.feed_forward_norm.scale": ("model.layers.{}.post_attention_layernorm.weight", "plain"),
    "layers.feed_forward.gate": ("model.layers.{}.mlp.gate_proj.weight", "linear"),
    "layers.feed_forward.up": ("model.layers.{}.mlp.up_proj.weight", "linear"),
    "layers.feed_forward.down": ("model.layers.{}.mlp.down_proj.weight", "linear"),
}
# Buffers that old checkpoints carry and that hold no weights.
_NO_WEIGHTS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class Deferral:
    """What the original's format adds to a base: the last row of its LM head (the gate) and of its embedding."""

    gate: np.ndarray  # [D]
    embedding: np.ndarray  # [D]


def _stored_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the checkpoint of a parameter that has `shape` here (one layer)."""
    if _TABLE[path][1] == "plain":
        return shape
    inputs = int(np.prod(shape[:2])) if path == "layers.attention.out" else shape[0]
    return int(np.prod(shape)) // inputs, inputs


def resolve(model: str | Path) -> Path:
    """The local directory of MODEL: the directory itself, or a Hub name's snapshot, downloaded where it is missing.

    Raises:
      UserError: neither a directory nor a Hub name that can be fetched.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists() or str(model).startswith((".", "/", "~")) or str(model).count("/") != 1:
        raise UserError(f"model {str(model)!r}: no such directory (a Hub name looks like 'owner/name')")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model {str(model)!r}: no such directory, and the Hub did not give it: {reason}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an error that names the file and the place."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_config(directory: Path) -> ModelConfig:
    """The directory's network description, as stored (the original's format counts its deferral row)."""
    return ModelConfig.from_huggingface(read_json(directory / "config.json"), str(directory / "config.json"))


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by its index where it has one; all exist."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise UserError(f"{index}: no 'weight_map' of tensor names to file names in it")
        files = [directory / name for name in sorted(set(names.values()))]
    else:
        files = [directory / "model.safetensors"]
        if not files[0].exists() and any(directory.glob("pytorch_model*.bin")):
            raise UserError(f"{directory}: has pickled weights (*.bin) only; convert them to safetensors first")
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: weights file is missing")
    return files


def check_weights(directory: Path) -> None:
    """Reads the configuration and every weight file's header, so that damage shows before anything is computed."""
    read_config(directory)
    for file in weight_files(directory):
        with _open(file):
            pass


@contextmanager
def _open(file: Path):
    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file (truncated or damaged?): {error}") from None


def _tensors(directory: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Every tensor of a checkpoint, with the file it stands in."""
    for file in weight_files(directory):
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, file, opened.get_tensor(name)


def _names(config: ModelConfig) -> dict[str, tuple[str, int | None]]:
    """Checkpoint name -> (path in Decoder, layer) for every tensor this configuration has."""
    wanted: dict[str, tuple[str, int | None]] = {}
    for path, (name, _) in _TABLE.items():
        if path == "head" and config.tied:
            continue
        if "{}" in name:
            wanted |= {name.format(i): (path, i) for i in range(config.depth)}
        else:
            wanted[name] = (path, None)
    return wanted


def load_model(
    directory: Path, dtype: str, mesh: jax.sharding.Mesh, tokenizer_size: int | None = None
) -> tuple[Decoder, Deferral | None]:
    """Loads a decoder onto `mesh`; the weights are converted to `dtype`.

    Args:
      directory: a local Hugging Face directory.
      dtype: "float32", "bfloat16" or "float16".
      mesh: where the parameters go, by their logical axes.
      tokenizer_size: given, the model is in the original Co-LLM's format and has this many words plus the deferral row.

    Returns:
      The decoder, and the deferral row where `tokenizer_size` was given.

    Raises:
      UserError: naming the missing, unknown or duplicate tensor, the wrong shape, or the value that is not finite.
    """
    config = read_config(directory)
    stored_words = config.vocab_size
    if tokenizer_size is not None:
        if config.tied or config.vocab_size != tokenizer_size + 1:
            raise UserError(
                f"{directory}: the tokenizer ends in {DEFER_TOKEN}, so an untied head of {tokenizer_size + 1} rows is "
                f"expected; config.json has vocab_size={config.vocab_size}, tie_word_embeddings={config.tied}"
            )
        config = replace(config, vocab_size=tokenizer_size)
    module = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), DTYPES[dtype]))
    graph, state = nnx.split(module)
    flat = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    wanted, seen = _names(config), dict[str, Path]()
    arrays = {path: np.empty(variable.shape, DTYPES[dtype]) for path, variable in flat.items()}
    extra: dict[str, np.ndarray] = {}
    for name, file, tensor in _tensors(directory):
        if _NO_WEIGHTS.fullmatch(name):
            continue
        if name in seen:
            raise UserError(f"{file}: tensor {name!r} stands in {seen[name].name} too")
        seen[name] = file
        if name == "lm_head.weight" and config.tied:
            continue  # tied checkpoints may repeat the table
        if name not in wanted:
            raise UserError(f"{file}: unknown tensor {name!r}; config.json describes no such weight")
        path, layer = wanted[name]
        shape = flat[path].shape[0 if layer is None else 1 :]
        expected = _stored_shape(path, shape)
        if tokenizer_size is not None and path in ("embedding", "head"):
            expected = (stored_words, expected[1])
        if tensor.shape != expected:
            raise UserError(f"{file}: tensor {name!r} has shape {list(tensor.shape)}, expected {list(expected)}")
        with np.errstate(over="ignore"):  # what float16 cannot hold is found below
            converted = tensor.astype(DTYPES[dtype])
        if not np.isfinite(converted.astype(np.float32)).all():
            raise UserError(f"{file}: tensor {name!r} holds NaN or infinite values (read as {dtype})")
        if tokenizer_size is not None and path in ("embedding", "head"):
            extra[path], converted = tensor[-1].astype(np.float32), converted[:-1]
        value = converted if _TABLE[path][1] == "plain" else converted.T.reshape(shape)
        arrays[path][... if layer is None else layer] = value
    missing = [name for name in wanted if name not in seen]
    if missing:
        raise UserError(f"{directory}: tensor {missing[0]!r} is missing ({len(missing)} of {len(wanted)} are)")
    loaded = jax.tree.map(
        jax.device_put,
        nnx.from_flat_state(
            [(path, variable.replace(arrays[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
        ),
        shardings(mesh, state),
    )
    decoder = nnx.merge(graph, loaded)
    return decoder, Deferral(gate=extra["head"], embedding=extra["embedding"]) if tokenizer_size is not None else None


def to_tensors(decoder: Decoder, dtype: str | None = None) -> dict[str, np.ndarray]:
    """The decoder's weights under their Hugging Face names, as NumPy arrays; the inverse of `load_model`."""
    arrays = {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(decoder))}
    tensors = {}
    for name, (path, layer) in _names(decoder.config).items():
        value = arrays[path] if layer is None else arrays[path][layer]
        if _TABLE[path][1] == "linear":
            rows, columns = _stored_shape(path, value.shape)
            value = value.reshape(columns, rows).T
        tensors[name] = np.ascontiguousarray(value if dtype is None else value.astype(DTYPES[dtype]))
    return tensors


def save_tensors(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Writes a safetensors file beside its place and renames it, so that a half-written one is never seen."""
    beside = path.with_name(path.name + ".tmp")
    save_file(tensors, beside, metadata={"format": "pt"})
    beside.replace(path)
