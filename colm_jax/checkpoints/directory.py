"""A model's directory: find it on disk or download it from the Hub, and list the files of its weights.

Only safetensors and GGUF are read, since pickled weights could run code. Remote code is never run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from colm_jax.checkpoints.gguf.directory import model_directory
from colm_jax.checkpoints.gguf.header import SPLIT, part_names
from colm_jax.errors import UserError
from colm_jax.storage import path_of, read_json, read_range, source_files, storage_of

_SINGLE, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_IGNORED = ["consolidated*", "*/*"]  # duplicates of the weights, for other programs
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses longer headers
_GGUF = ".gguf"
_FETCHED = ["*.json", "*.model", "*.jinja"]  # everything but weights
_WEIGHTS = "model*.safetensors"  # of a team's base, as `save_team` names them
TEAM_FILE = "colm.json"  # a directory with it is a team, or a gate without its base


def resolve(model: str | Path, weights: bool = True) -> Path:
    """Return the directory of a model: of a path on disk or in a bucket, or of a Hub name.

    A path may be a GGUF file, or a directory with one and no safetensors; its directory is made in the cache, with the
    weights left in the file. A Hub name is OWNER/NAME or, for a GGUF file, OWNER/NAME:FILE.gguf, and may end in
    @REVISION (a branch, tag or commit). A missing snapshot is downloaded; unless `weights`, it may lack weights other
    than GGUF (of a team, only the base's). The snapshot's directory is named after its commit (see `revision`).
    HF_HUB_OFFLINE=1 restricts to the cache.

    Raises:
      UserError: neither a directory, a GGUF file, nor a Hub name that can be fetched.
    """
    path = path_of(model)
    if path.is_dir():
        file = _only_gguf(path)
        return path if file is None else model_directory(file)
    if path.name.endswith(_GGUF) and path.is_file():
        return model_directory(path)
    if "://" in str(path):
        raise UserError(f"model {str(model)!r}: nothing in the bucket begins with it")
    name, _, wanted = str(model).partition("@")
    repository, _, file_name = name.partition(":")
    if path.exists() or name.startswith((".", "/", "~")) or repository.count("/") != 1:
        raise UserError(
            f"model {str(model)!r}: no such directory or GGUF file (a Hub name looks like 'owner/name' or "
            "'owner/name:file.gguf')"
        )
    if ":" in name:
        return _gguf_of_hub(model, repository, file_name, wanted or None)
    return _snapshot(model, repository, wanted or None, weights)


def _only_gguf(directory: Path) -> Path | None:
    """Return the GGUF file of a directory that has no safetensors; None without one.

    Raises:
      UserError: several of them.
    """
    if source_files(directory) or any(any(directory.glob(name)) for name in ("*.safetensors", _INDEX)):
        return None
    files = sorted(file for file in directory.glob(f"*{_GGUF}") if file.is_file() and _begins(file.name))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{directory}: holds several GGUF files ({names}); name one of them, {files[0]}")
    return next(iter(files), None)


def _begins(name: str) -> bool:
    """Return whether a GGUF file is whole, or the first of several parts."""
    found = SPLIT.fullmatch(name)
    return found is None or int(found[2]) == 1


def _snapshot(model: str | Path, repository: str, wanted: str | None, weights: bool) -> Path:
    """Return the directory of a Hub repository."""
    from huggingface_hub import snapshot_download

    patterns = [*_FETCHED, "*.safetensors"] if weights else _FETCHED
    with one_line_hub_errors(model):
        directory = Path(
            snapshot_download(repository, revision=wanted, allow_patterns=patterns, ignore_patterns=_IGNORED)
        )
        if not weights and (directory / TEAM_FILE).exists():  # its gate is small, and read with the configuration
            kinds, ignored, commit = [*_FETCHED, "*.safetensors"], [*_IGNORED, _WEIGHTS], directory.name
            snapshot_download(repository, revision=commit, allow_patterns=kinds, ignore_patterns=ignored)
    if (directory / TEAM_FILE).exists():
        return directory
    if (directory / "config.json").exists() and (not weights or any(directory.glob("*.safetensors"))):
        return directory
    if files := _gguf_names(repository, wanted):
        raise UserError(
            f"model {str(model)!r}: has only GGUF files ({', '.join(files)}); name one of them, as in "
            f"{repository}:{files[0]}"
        )
    return directory


def _gguf_names(repository: str, wanted: str | None) -> list[str]:
    """Return the GGUF files of a Hub repository; none where the Hub cannot be asked."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HTTPError

    try:
        names = list_repo_files(repository, revision=wanted)
    except (HTTPError, OSError):
        return []
    return sorted(name for name in names if name.endswith(_GGUF) and _begins(Path(name).name))


def _gguf_of_hub(model: str | Path, repository: str, name: str, wanted: str | None) -> Path:
    """Download a GGUF file, with its other parts; return its model directory."""
    from huggingface_hub import hf_hub_download

    if not name.endswith(_GGUF):
        raise UserError(f"model {str(model)!r}: {name!r} is no GGUF file; write owner/name:FILE.gguf")
    with one_line_hub_errors(model):
        names = part_names(name)
        files = [Path(hf_hub_download(repository, part, revision=wanted)) for part in names]
    return model_directory(files[0])


@contextmanager
def one_line_hub_errors(model: str | Path) -> Iterator[None]:
    """Turn the Hub's errors into one line.

    Raises:
      UserError: naming the model.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"model {str(model)!r}: no such directory, and not available from the Hub: {reason}") from error


def revision(directory: Path) -> str | None:
    """Return the commit of a Hub snapshot (…/snapshots/COMMIT), or of the GGUF file in it; None for all others."""
    for file in source_files(directory):
        return next((above.name for above in file.parents if above.parent.name == "snapshots"), None)
    return directory.name if directory.parent.name == "snapshots" else None


def weight_map(directory: Path) -> dict[str, str] | None:
    """Return the file name of each tensor from the checkpoint's index; None without an index.

    Raises:
      UserError: an index that cannot be read, or that names a file outside the directory.
    """
    index = directory / _INDEX
    if not index.exists():
        return None
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: no 'weight_map' of tensor names to file names in it")
    for name in names.values():
        if Path(name).name != name:
            raise UserError(f"{index}: {name!r} is not a plain file name; weights must be in the index's directory")
    return names


def weight_files(directory: Path) -> list[Path]:
    """Return the files of a checkpoint's weights, as listed in its index if it has one; all exist.

    Other programs' copies of the weights (pytorch_model*.bin, consolidated*) are not read, as in transformers.

    Raises:
      UserError: a file is missing, two sets of weights, or an adapter.
    """
    if files := source_files(directory):
        for file in files:
            if not file.is_file():
                raise UserError(f"{file}: weights file is missing")
        return files
    adapter, single, listed = directory / _ADAPTER, directory / _SINGLE, weight_map(directory)
    if adapter.exists():
        raise UserError(
            f"{adapter}: adapters (PEFT, LoRA) are not applied; merge it into its base (merge_and_unload) and save "
            "the merged model without this file"
        )
    names = sorted({_SINGLE} if listed is None else set(listed.values()))
    if listed is not None and _SINGLE not in names and single.exists():
        raise UserError(
            f"{directory}: two sets of weights: {_INDEX} lists {', '.join(names[:2])}{', ...' * (len(names) > 2)}, and "
            f"{_SINGLE} exists too; remove the index and its files, or {_SINGLE} (which transformers reads)"
        )
    if listed is None and not single.exists() and any(directory.glob("pytorch_model*")):
        raise UserError(
            f"{directory}: has pickled weights (*.bin) only, which could run code; convert them to safetensors "
            "(or name a revision that has them: owner/name@REVISION)"
        )
    for name in names:
        if not (directory / name).exists():
            raise UserError(f"{directory / name}: weights file is missing")
    return [directory / name for name in names]


@contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """Open a safetensors file; the library checks its header. Of a file in a bucket only the header is fetched.

    Raises:
      UserError: the file is missing, truncated or damaged.
    """
    try:
        length = min(int.from_bytes(read_range(file, 0, 8), "little"), _LONGEST_HEADER)
        with storage_of(file).local_start(file, 8 + length) as local, safe_open(local, framework="numpy") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file (truncated or damaged?): {error}") from None
