"""A GGUF file as a model directory in the cache: configuration and tokenizer converted, weights left in the file."""

import hashlib
from pathlib import Path

from colm_jax.checkpoints.gguf.config import to_config
from colm_jax.checkpoints.gguf.header import parts_of, read_header
from colm_jax.checkpoints.gguf.names import to_tensors
from colm_jax.checkpoints.gguf.stacks import Stack
from colm_jax.checkpoints.gguf.tensors import GGUFTensor
from colm_jax.checkpoints.gguf.tokenizer import to_tokenizer
from colm_jax.storage import (
    absolute,
    convert_once,
    modified,
    read_json,
    read_range,
    size_of,
    source_files,
    write_json,
    write_text,
)

_FORMAT = "1"  # of the conversion; another one for every change of what it writes
_START = 1 << 20  # bytes of each file that identify it, with its size and time


def model_directory(file: Path) -> Path:
    """Return the model directory of a GGUF file; made once for each content of the file.

    Raises:
      UserError: a damaged or unsupported file, or one of its parts is missing.
    """
    # Links are not followed: the Hub's cache has other names behind them.
    files = [absolute(part.parent) / part.name for part in parts_of(file)]
    identity = [_FORMAT]
    for part in files:
        start = hashlib.sha256(read_range(part, 0, _START)).hexdigest()
        identity += [str(part), str(size_of(part)), repr(modified(part)), start]

    def convert(directory: Path) -> None:
        header = read_header(files[0])
        config, tokenizer = to_config(header), to_tokenizer(header)
        to_tensors(header, config)  # names and shapes are checked before anything is kept
        ids = {
            f"{name}_token_id": tokenizer["generation_config.json"].get(f"{name}_token_id") for name in ("bos", "eos")
        }
        write_json(directory / "config.json", {**config, **ids})
        for name, content in tokenizer.items():
            (write_text if isinstance(content, str) else write_json)(directory / name, content)

    return convert_once(files, identity, convert)


def tensors(directory: Path) -> list[GGUFTensor | Stack]:
    """Return the tensors of a directory made by `model_directory`."""
    return to_tensors(read_header(source_files(directory)[0]), read_json(directory / "config.json"))
