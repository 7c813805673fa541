"""Describe models and whether they can pair, from configuration, headers and tokenizer; no weights are read."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from colm_jax.checkpoints.directory import resolve, revision
from colm_jax.checkpoints.families import FAMILIES
from colm_jax.checkpoints.families.rope import write_rope
from colm_jax.checkpoints.gates import has_weights
from colm_jax.checkpoints.huggingface import DTYPES, match_tensors, read_config
from colm_jax.checkpoints.layout import abstract_decoder, by_path, table_key
from colm_jax.checkpoints.outline import Outline, outline_team
from colm_jax.checkpoints.quantized.kernel import forms
from colm_jax.checkpoints.quantized.packed import PackedOnDisk
from colm_jax.checkpoints.quantized.scheme import read_scheme
from colm_jax.checkpoints.reader import StoredPart
from colm_jax.checkpoints.team import TEAM_FILE, head_rows
from colm_jax.errors import UserError
from colm_jax.models.arrays import bits_of
from colm_jax.models.config import ModelConfig
from colm_jax.models.quantize import BITS, QUANTIZED, quantize_kernel
from colm_jax.parallel import spec_of
from colm_jax.storage import path_of, read_json, shown
from colm_jax.text.tokenizer import load_tokenizer, shared_vocabulary


def describe(model: str | Path, mesh: jax.sharding.AbstractMesh) -> dict[str, Any]:
    """Return the facts of a model and how `mesh` shards it. Only headers of weights are read, and none are downloaded.

    Raises:
      UserError: any error of loading, except about the values of the weights.
    """
    directory = resolve(model, weights=False)
    config, tokenizer = read_config(directory), load_tokenizer(directory)
    held = match_tensors(directory, values=False) if path_of(model).is_dir() or has_weights(directory) else None
    team = read_json(directory / TEAM_FILE) if (directory / TEAM_FILE).exists() else None
    kind = "original Co-LLM (deferral row)" if tokenizer.has_defer_token else "team" if team else "model"
    facts: dict[str, Any] = {
        "model": str(model),
        "directory": str(shown(directory)),
        "revision": revision(directory),
        "format": kind,
        "family": config.family,
        "parameters": sum(math.prod(variable.shape) for variable in _parameters(config).values()),
        "active_parameters": sum(_active(config, variable) for variable in _parameters(config).values()),
        "stored_as": None if held is None else dict(Counter(part.tensor.type for part in held)),
        "bytes_on_disk": None if held is None else sum(part.bytes for part in held),
        "bytes": memory(config),
        "quantised": None if held is None else quantised(config, held, mesh),
        "cache_bytes_per_token": {
            name: config.cache_width * jnp.dtype(dtype).itemsize for name, dtype in DTYPES.items()
        },
        "context": config.context,
        "rope": write_rope(config.rope),
        "vocabulary": {
            "words": tokenizer.size,
            "rows": config.vocab_size - tokenizer.has_defer_token,
            "end_of_text": list(tokenizer.eos_ids),
            "end_of_text_tokens": [tokenizer.backend.convert_ids_to_tokens(i) or "" for i in tokenizer.eos_ids],
        },
        "chat_template": tokenizer.template_digest,
        "tokenizer": tokenizer.kind,
        "config": {key: value for key, value in dataclasses.asdict(config).items() if value is not None},
        "mesh": dict(mesh.shape),
        **_layout(config, mesh),
    }
    if team is not None:
        facts["team"] = {key: team.get(key) for key in ("experts", "threshold", "gate")}
    return facts


def packed_parts(model: str | Path) -> list[StoredPart] | None:
    """Return the parts of a checkpoint whose kernels stay in few bits; None for any other. Only headers are read.

    Raises:
      UserError: a quantised checkpoint whose weights are not downloaded, so that their types and groups are not known.
    """
    directory = resolve(model, weights=False)
    if path_of(model).is_dir() or has_weights(directory):
        held = match_tensors(directory, values=False)
        return held if any(isinstance(part.tensor, PackedOnDisk) for part in held) else None
    if read_scheme(read_json(directory / "config.json"), str(directory / "config.json")) is None:
        return None
    raise UserError(
        f"model {str(model)!r}: is quantised, and its weights are not downloaded, so what they take in memory is not "
        "known; download them, or name the type to convert them to (--expert_dtype)"
    )


def _parameters(config: ModelConfig) -> dict[str, nnx.Variable]:
    """Return the parameters of a model by path, as abstract arrays."""
    return by_path(nnx.state(abstract_decoder(config)))


def _active(config: ModelConfig, variable: nnx.Variable) -> int:
    """Return how many weights of a parameter a token passes: of a mixture's networks, those that it is routed to."""
    count = math.prod(variable.shape)
    if config.mixture is None or "networks" not in variable.get_metadata()["axes"]:
        return count
    return count * config.mixture.active // config.mixture.networks


def memory(config: ModelConfig) -> dict[str, int]:
    """Return the bytes of the weights in every type that loading offers (int8 and int4: the rest in bfloat16)."""
    sizes: dict[str, int] = dict.fromkeys((*DTYPES, *BITS), 0)
    table = FAMILIES[config.family].table
    for path, variable in _parameters(config).items():
        count = math.prod(variable.shape)
        for kind, dtype in DTYPES.items():
            sizes[kind] += count * jnp.dtype(dtype).itemsize
        for kind in BITS:
            sizes[kind] += _quantized_bytes(path, variable, table[table_key(path)].inputs, kind) or 2 * count
    return sizes


def quantised(
    config: ModelConfig, held: Sequence[StoredPart], mesh: jax.sharding.AbstractMesh
) -> dict[str, Any] | None:
    """Return what a quantised checkpoint takes in memory if it stays so; None for any other.

    Returns:
      "bytes", with what is not quantised in bfloat16, and "dequantised": the parameters that are stored in few bits but
      cannot be kept so.
    """
    packed = {one.part.path for one in held if isinstance(one.tensor, PackedOnDisk)}
    if not packed:
        return None
    kept, total = forms(held, _parameters(config), mesh), 0
    for one in held:
        leaves = jax.tree.leaves(kept.get(one.part.path, jax.ShapeDtypeStruct(one.part.shape, jnp.bfloat16)))
        total += sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return {"bytes": total, "dequantised": sorted(packed - set(kept))}


def _quantized_bytes(path: str, variable: nnx.Variable, inputs: int, kind: str) -> int | None:
    """Return the bytes of a quantised parameter with all its layers; None if it is not quantised."""
    if not QUANTIZED.fullmatch(path):
        return None
    axes = variable.get_metadata()["axes"]
    leading = sum(axis in ("layers", "networks") for axis in axes)
    kernel = jax.ShapeDtypeStruct(variable.shape[leading:], jnp.bfloat16)
    leaves = jax.tree.leaves(jax.eval_shape(partial(quantize_kernel, inputs=inputs, kind=kind), kernel))
    bits = sum(leaf.size * bits_of(leaf.dtype) for leaf in leaves)
    return math.prod(variable.shape[:leading]) * bits // 8


def _layout(config: ModelConfig, mesh: jax.sharding.AbstractMesh) -> dict[str, Any]:
    per_device, layout = 0, {}
    for path, variable in _parameters(config).items():
        spec = spec_of(mesh, variable.get_metadata()["axes"], variable.shape)
        split = [[entry] if isinstance(entry, str) else list(entry or ()) for entry in spec]
        parts = math.prod(mesh.shape[axis] for axes in split for axis in axes)
        per_device += math.prod(variable.shape) // parts
        layout[path] = {"shape": list(variable.shape), "split": split}
    return {"parameters_per_device": per_device, "layout": layout}


def describe_pair(models: Sequence[str]) -> dict[str, Any]:
    """Return whether these models, base first, can decode together, and how.

    Returns:
      "can_pair" and, if so, "kinds", of each expert: "resident", "guest" or "remote"; else "why_not". Of resident
      experts also the team's "context", the size of the "shared_vocabulary" and the ids of each model that are
      "never_written"; of a team by spans, the reason ("why_spans").
    """
    try:
        outline = outline_team(models[0], models[1:])
    except UserError as error:
        return {"can_pair": False, "why_not": str(error)}
    facts: dict[str, Any] = {"can_pair": True, "kinds": list(outline.kinds)}
    if not outline.resident:
        return facts | {"why_spans": _why_spans(outline)}
    known = [t for t in (outline.tokenizer, *outline.expert_tokenizers) if t is not None]
    rows = [head_rows(d, t) for d, t in zip(outline.directories, known) if d is not None]
    return facts | {
        "context": outline.context,
        "shared_vocabulary": int(outline.allowed.sum()),
        "never_written": {
            model: ranges(np.setdiff1d(np.arange(count), np.flatnonzero(outline.allowed)))
            for model, count in zip(models, rows)
        },
    }


def _why_spans(outline: Outline) -> str:
    """Return why a team's models do not write token by token."""
    try:
        for expert, tokenizer in zip(outline.models[1:], outline.expert_tokenizers):
            if tokenizer is None:
                return f"{expert} is an endpoint"
            shared_vocabulary([outline.tokenizer, tokenizer], [outline.tokenizer.size, tokenizer.size])
    except UserError as error:
        return str(error)
    return "they were asked to"


def ranges(ids: np.ndarray) -> list[list[int]]:
    """Return sorted ids as [first, last] ranges."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    return [[int(run[0]), int(run[-1])] for run in runs if len(run)]
