"""Model directories in the cache that were made from another file, which is what users know and what holds the weights.

A converted GGUF file is an ordinary model directory with `source.json`, which lists the file and its other parts.
"""

from collections.abc import Callable
from pathlib import Path

from colm_jax.errors import UserError
from colm_jax.storage.cache import is_made, made_once
from colm_jax.storage.files import in_bucket, path_of, write_json
from colm_jax.storage.text import read_json

_KIND, _SOURCE = "gguf", "source.json"


def convert_once(files: list[Path], identity: list[str], convert: Callable[[Path], None]) -> Path:
    """Return a directory of the cache that is made from files, once for each content of them.

    Args:
      files: absolute paths.
      identity: what identifies their content.
      convert: fills an empty directory.
    """

    def make(folder: Path) -> None:
        # Whatever shows the directory's path shows the file's name.
        directory = folder / files[0].name
        directory.mkdir()
        convert(directory)
        write_json(directory / _SOURCE, {"files": [str(file) for file in files]})

    return made_once(_KIND, identity, make) / files[0].name


def source_files(directory: Path) -> list[Path]:
    """Return the files that a directory of the cache was made from; empty for every other directory."""
    if in_bucket(directory) or not is_made(_KIND, directory) or not (directory / _SOURCE).exists():
        return []
    files = read_json(directory / _SOURCE).get("files")
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise UserError(f"{directory / _SOURCE}: lists no files; remove {directory.parent} and rerun the same command")
    return [path_of(file) for file in files]


def shown(directory: Path) -> Path:
    """Return the path by which users know a model directory: itself, or the file that it was made from."""
    return next(iter(source_files(directory)), directory)
