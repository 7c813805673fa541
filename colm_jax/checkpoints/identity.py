"""What identifies a model: hashes of the content of its files, wherever they are."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from colm_jax.checkpoints.directory import TEAM_FILE, weight_files
from colm_jax.checkpoints.gguf.header import part_names
from colm_jax.storage import checksums, modified, sha256_of, size_of, source_files

_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "*token*.json",
    TEAM_FILE,
    "*.jinja",
    "*.model",
)


def hash_model(directory: Path) -> str:
    """Return the SHA-256 of all files of a model directory that decide what it computes (see `storage.checksums`).

    A converted GGUF file's weights are outside its directory.
    """
    names = _names(directory)
    hashes = checksums(directory, names)
    for file in source_files(directory):
        hashes |= checksums(file.parent, [file.name])
        names.append(file.name)
    return _combined(names, hashes)


def hash_base(directory: Path, file: str | None = None) -> str:
    """Return the SHA-256 of the files of a model directory that decide what it computes as a base.

    It equals `hash_model` of an ordinary directory. Of a team directory it is that of the base alone, without the gate
    and colm.json; weights that are not read do not count.

    Args:
      directory: the model's directory.
      file: the name of a GGUF file when the hash was made, where it has another one now.

    Raises:
      UserError: weights are missing.
    """
    sources, read = source_files(directory), weight_files(directory)
    weights = {path.name for path in read}
    names = [
        name
        for name in _names(directory)
        if name != TEAM_FILE and (name in weights or not name.endswith(".safetensors"))
    ]
    hashes = {name: _sha256(directory / name) for name in names}
    known_as = [path.name for path in sources] if file is None else part_names(file)
    for path, name in zip(sources, known_as):
        hashes[name] = _sha256(path)
        names.append(name)
    return _combined(names, hashes)


def _names(directory: Path) -> list[str]:
    """Return the names of the files that decide what a model computes, sorted."""
    return sorted({path.name for pattern in _PATTERNS for path in directory.glob(pattern)})


def _combined(names: Sequence[str], hashes: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in names).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file; in one process an unchanged file is read once."""
    return _sha256_once(path, size_of(path), modified(path))


@lru_cache(maxsize=4096)
def _sha256_once(path: Path, size: int, time: float) -> str:
    return sha256_of(path)
