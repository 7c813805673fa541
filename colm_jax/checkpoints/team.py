"""Team directories: the base as an ordinary Hugging Face checkpoint, plus gate.safetensors and colm.json.

The original Co-LLM's format is read and written too: a base whose LM head and embedding have one extra last row, for
the deferral token <|defer|>, last in the tokenizer; P(defer) is the sigmoid of that row's logit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from colm_jax.checkpoints.directory import TEAM_FILE, resolve
from colm_jax.checkpoints.families import to_huggingface
from colm_jax.checkpoints.huggingface import DTYPES, load_model, read_config, save_tensors, to_tensors
from colm_jax.checks import check_number
from colm_jax.console import Progress
from colm_jax.errors import UserError
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate, gate_width
from colm_jax.models.quantize import BITS
from colm_jax.parallel import is_first, to_host
from colm_jax.settings.training import GATE_INPUTS
from colm_jax.storage import (
    absolute,
    copy_file,
    local_copy,
    make_directory,
    publish,
    read_json,
    shown,
    working_directory,
    write_json,
)
from colm_jax.text.special import DEFER_TOKEN
from colm_jax.text.tokenizer import Tokenizer, load_tokenizer, shared_vocabulary

GATE_FILE = "gate.safetensors"
FORMAT = 1
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Base:
    """A loaded base, with the gate of its directory if it has one."""

    decoder: Decoder
    gate: Gate | None
    tokenizer: Tokenizer
    directory: Path
    facts: dict[str, Any]  # colm.json, or empty
    defer_embedding: np.ndarray | None  # [D], the deferral token's embedding in the original's format, for export


def make_gate(kernel: np.ndarray | jax.Array, inputs: str = "hidden") -> Gate:
    """Return a gate with the given kernel [D, M], with a row for each of its `inputs`: see `models.gate`."""
    gate = Gate(kernel.shape[0] - gate_width(0, inputs), kernel.shape[1], inputs)
    gate.kernel[...] = jnp.asarray(kernel, jnp.float32)
    return gate


def read_facts(directory: Path) -> dict[str, Any]:
    """Return the content of a team's colm.json; empty for a plain model, which has none.

    Raises:
      UserError: an unsupported format version, or a threshold that is not from 0 to 1.
    """
    path = directory / TEAM_FILE
    if not path.exists():
        return {}
    facts = read_json(path)
    if facts.get("format") != FORMAT:
        raise UserError(f"{path}: format {facts.get('format')!r}; this version reads {FORMAT}")
    if facts.get("threshold") is not None:
        facts["threshold"] = check_number(f"{path}: threshold", facts["threshold"], 0, 1)
    return facts


def threshold_of(facts: Mapping[str, Any]) -> float:
    """Return the calibrated threshold that colm.json holds, or 0.5."""
    found = facts.get("threshold")
    return 0.5 if found is None else float(found)


def head_rows(directory: Path, tokenizer: Tokenizer) -> int:
    """Return the rows of a model's LM head, without the deferral token's."""
    return read_config(directory).vocab_size - tokenizer.has_defer_token


def load_tokenizers(directories: Sequence[Path]) -> tuple[list[Tokenizer], np.ndarray]:
    """Load the tokenizers of models that share one, base first, and the vocabulary that they share, [V] bool.

    Raises:
      UserError: tokenizers that disagree, or that share no end-of-text token (see `shared_vocabulary`).
    """
    tokenizers = [load_tokenizer(directory) for directory in directories]
    allowed = shared_vocabulary(tokenizers, [*map(head_rows, directories, tokenizers)])
    return [tokenizers[0].within(allowed), *tokenizers[1:]], allowed


def load_base(
    model: str | Path,
    dtype: str,
    mesh: jax.sharding.Mesh,
    stacked: bool = True,
    progress: Progress = lambda done, total: None,
    packed: bool = True,
    gate: Path | None = None,
) -> Base:
    """Load a plain model, a team directory, or a checkpoint in the original's format; arguments as `load_model`.

    Without `packed`, the weights of a quantised checkpoint are dequantised to `dtype`, as training them requires. The
    directory `gate` holds the gate and its facts, in place of the model's own (see `checkpoints.gates`).

    Raises:
      UserError: as `load_model`; a gate that does not fit the base; a chat template that differs from training's.
    """
    directory = resolve(model)
    tokenizer = load_tokenizer(directory)
    size = tokenizer.size if tokenizer.has_defer_token else None
    stored = read_gate(gate or directory, tokenizer, read_config(directory).width, apart=gate is not None)
    decoder, deferral = load_model(directory, dtype, mesh, size, None, stacked, progress, packed)
    if deferral is not None and gate is None:
        return Base(decoder, make_gate(deferral.gate[:, None]), tokenizer, directory, {}, deferral.embedding)
    made = None if stored.kernel is None else make_gate(stored.kernel, stored.inputs)
    return Base(decoder, made, tokenizer, directory, stored.facts, stored.defer_embedding)


@dataclass(frozen=True)
class StoredGate:
    """The additions of a team directory to the base; empty for a plain model and for the original's format."""

    facts: dict[str, Any]  # colm.json, or empty
    kernel: np.ndarray | None  # [D, M] float32, with a row for each of its inputs; None: no gate
    defer_embedding: np.ndarray | None  # [D]
    inputs: str = "hidden"  # one of GATE_INPUTS


def read_gate(directory: Path, tokenizer: Tokenizer, width: int, apart: bool = False) -> StoredGate:
    """Read colm.json and the gate's file, without the base's weights.

    Args:
      directory: the base's directory.
      tokenizer: the base's tokenizer.
      width: the base's hidden size, D.
      apart: the directory is the gate's, and the base is elsewhere.

    Raises:
      UserError: a gate that does not fit the base, or a chat template that differs from training's.
    """
    facts = {} if tokenizer.has_defer_token and not apart else read_facts(directory)
    if not facts:
        return StoredGate({}, None, None)
    if facts.get("chat_template", tokenizer.template_digest) != tokenizer.template_digest:
        raise UserError(
            f"{shown(directory)}: its chat template (sha256 {tokenizer.template_digest}) differs from the one the team "
            f"was trained with ({facts['chat_template']}, in {TEAM_FILE}); restore the trained one"
        )
    path = directory / GATE_FILE
    if not path.exists():
        raise UserError(f"{path}: file is missing; a directory with {TEAM_FILE} needs it")
    try:
        tensors = load_file(local_copy(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file (truncated or damaged?): {error}") from None
    kernel, inputs = tensors.get("gate.weight"), _inputs_of(facts, directory)
    if kernel is None or kernel.ndim != 2 or kernel.shape[1] != gate_width(width, inputs):
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        reads = "" if inputs == "hidden" else f" for its inputs {inputs!r}"
        raise UserError(
            f"{path}: needs 'gate.weight' of shape [experts, {gate_width(width, inputs)}]{reads}, holds {found}"
        )
    # A model that was trained alone has a gate for no experts.
    return StoredGate(facts, kernel.T if len(kernel) else None, tensors.get("defer_embedding"), inputs)


def _inputs_of(facts: Mapping[str, Any], directory: Path) -> str:
    """Return what the gate of a team reads; teams of before there was a choice do not say it."""
    inputs = (facts.get("gate") or {}).get("inputs", "hidden")
    if inputs not in GATE_INPUTS:
        raise UserError(
            f"{shown(directory / TEAM_FILE)}: gate.inputs must be one of {', '.join(GATE_INPUTS)}, got {inputs!r}; a "
            "later version may read it"
        )
    return inputs


def load_expert(
    directory: Path,
    tokenizer: Tokenizer,
    dtype: str,
    kind: str | None,
    mesh: jax.sharding.Mesh,
    progress: Progress = lambda done, total: None,
    stacked: bool = False,
) -> Decoder:
    """Load a frozen model for scoring and decoding.

    Args:
      directory: the model's directory.
      tokenizer: the model's tokenizer.
      dtype: the base's type.
      kind: one of EXPERT_DTYPES; "int8" and "int4" quantise weights only, the rest is in `dtype`. None: `dtype`, and a
        quantised checkpoint stays as it is stored (which any other kind dequantises first).
      mesh: devices to shard the parameters over.
      progress: callback(bytes read, total).
      stacked: stack the layers' parameters, as a training step needs them.
    """
    size = tokenizer.size if tokenizer.has_defer_token else None
    quantize, packed = kind if kind in BITS else None, kind is None
    dtype = kind if kind in DTYPES else dtype
    return load_model(directory, dtype, mesh, size, quantize, stacked, progress, packed)[0]


def pinned(expert: dict[str, Any]) -> str:
    """Return the name by which to load a team's expert: a Hub name is pinned to the commit of training."""
    model, commit = expert["model"], expert.get("revision")
    return model if commit is None or "://" in model or Path(model).is_dir() else f"{model}@{commit}"


def save_team(
    directory: Path,
    decoder: Decoder,
    gate: Gate,
    tokenizer_directory: Path,
    dtype: str,
    facts: dict[str, Any],
    defer_embedding: np.ndarray | None = None,
) -> None:
    """Write a team directory; of several processes all must call this, and the first writes.

    colm.json is written last: a directory without it is not a team.

    Args:
      directory: created if missing.
      decoder: the base.
      gate: the base's gate.
      tokenizer_directory: the directory from which to copy the tokenizer files.
      dtype: the type of the stored base; the gate is always float32.
      facts: for colm.json: experts, thresholds, provenance.
      defer_embedding: kept for `save_reference` if the base was in the original's format.
    """
    tensors = to_tensors(decoder, dtype)
    kernel = np.ascontiguousarray(to_host(gate.kernel[...]).astype(np.float32).T)
    if not is_first():
        return
    with working_directory(directory) as here:
        tokenizer = _copy_tokenizer(tokenizer_directory, here)
        save_tensors(tensors, here / "model.safetensors")
        extra = {} if defer_embedding is None else {"defer_embedding": np.asarray(defer_embedding, np.float32)}
        save_tensors({"gate.weight": kernel, **extra}, here / GATE_FILE)
        config = to_huggingface(
            decoder.config, dtype, tokenizer.backend.bos_token_id, _stored_eos(load_tokenizer(tokenizer_directory))
        )
        write_json(here / "config.json", config)
        gate_facts = {"width": decoder.config.width, "experts": kernel.shape[0], "inputs": gate.inputs}
        team = {"format": FORMAT, "gate": gate_facts, "chat_template": tokenizer.template_digest, **facts}
        write_json(here / TEAM_FILE, team)
        publish(here, directory, last=TEAM_FILE)


def save_reference(directory: Path, base: Base, dtype: str) -> None:
    """Write the original's format: one extra last row in head and embedding, <|defer|> last in the tokenizer.

    The directory must be on disk. Decoding never reads the embedding's extra row; it is the mean row if the base has
    none of its own.

    Raises:
      UserError: no gate, a gate for several experts or that reads more than hidden states, or a vocabulary size that
        differs from the tokenizer's.
    """
    if base.gate is None:
        raise UserError(f"{shown(base.directory)}: has no gate; only a trained team can be exported")
    if base.gate.inputs != "hidden":
        raise UserError(
            f"{shown(base.directory)}: the original's format holds a gate that reads hidden states alone, this one has "
            f"the inputs {base.gate.inputs!r}; train with Training.gate_inputs 'hidden', or export as --format colm"
        )
    kernel = np.asarray(base.gate.kernel[...])
    if kernel.shape[1] != 1:
        raise UserError(
            f"{shown(base.directory)}: the original's format holds one expert's gate, this one has {kernel.shape[1]}"
        )
    if base.tokenizer.size != base.decoder.config.vocab_size:
        raise UserError(
            f"{shown(base.directory)}: the tokenizer has {base.tokenizer.size} tokens and the LM head "
            f"{base.decoder.config.vocab_size} rows; the original's format needs them equal"
        )
    make_directory(directory)
    tensors = to_tensors(base.decoder)
    embedding = tensors["model.embed_tokens.weight"]
    head = tensors.get("lm_head.weight", embedding)
    row = embedding.astype(np.float32).mean(0) if base.defer_embedding is None else base.defer_embedding
    tensors["model.embed_tokens.weight"] = np.concatenate([embedding, row[None].astype(embedding.dtype)])
    tensors["lm_head.weight"] = np.concatenate([head, kernel.T.astype(head.dtype)])
    save_tensors(
        {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in tensors.items()}, directory / "model.safetensors"
    )
    tokenizer = _copy_tokenizer(base.directory, directory, defer_token=True)
    config = to_huggingface(base.decoder.config, dtype, tokenizer.backend.bos_token_id, _stored_eos(base.tokenizer))
    vocab_size = base.decoder.config.vocab_size + 1
    write_json(directory / "config.json", {**config, "vocab_size": vocab_size, "tie_word_embeddings": False})


def _copy_tokenizer(source: Path, target: Path, defer_token: bool = False) -> Tokenizer:
    """Copy the tokenizer to a directory on disk, with or without the deferral token as its last token."""
    if absolute(source) != absolute(target):
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                copy_file(source / name, target / name)
    if load_tokenizer(target).has_defer_token == defer_token:
        return load_tokenizer(target)
    path = target / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    config = read_json(target / "tokenizer_config.json") if (target / "tokenizer_config.json").exists() else {}
    special = [token for token in config.get("extra_special_tokens", []) if token != DEFER_TOKEN]
    added = [token for token in content["added_tokens"] if token["content"] != DEFER_TOKEN]
    if defer_token:
        token = {"id": load_tokenizer(target).size, "content": DEFER_TOKEN, "special": True, "normalized": False}
        added.append({**token, "single_word": False, "lstrip": False, "rstrip": False})
        special.append(DEFER_TOKEN)
    write_json(path, {**content, "added_tokens": added})
    config.pop("extra_special_tokens", None)
    write_json(target / "tokenizer_config.json", {**config, **({"extra_special_tokens": special} if special else {})})
    return load_tokenizer(target)


def _stored_eos(tokenizer: Tokenizer) -> int | list[int]:
    """Return the end-of-text ids as stored in config.json: one id, or a list."""
    return tokenizer.eos_id if len(tokenizer.eos_ids) < 2 else list(tokenizer.eos_ids)
