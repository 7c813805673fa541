"""A model's directory: find it on disk or download it from the Hub, and list its safetensors files.

Only safetensors are read, since pickled weights could run code. Remote code is never run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from colm_jax.errors import UserError
from colm_jax.storage import path_of, read_json, read_range, storage_of

_SINGLE, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_IGNORED = ["consolidated*", "*/*"]  # duplicates of the weights, for other programs
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses longer headers
_FETCHED = ["*.json", "*.model", "*.jinja"]  # everything but weights


def resolve(model: str | Path, weights: bool = True) -> Path:
    """Return the directory of a model: a path on disk or in a bucket, or the snapshot of a Hub name.

    A missing snapshot is downloaded; unless `weights`, it may lack them. A Hub name may end in @REVISION (a branch, tag
    or commit). The snapshot's directory is named after its commit (see `revision`). HF_HUB_OFFLINE=1 restricts to the
    cache.

    Raises:
      UserError: neither a directory nor a Hub name that can be fetched.
    """
    path = path_of(model)
    if path.is_dir():
        return path
    if "://" in str(path):
        raise UserError(f"model {str(model)!r}: nothing in the bucket begins with it")
    name, _, wanted = str(model).partition("@")
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"model {str(model)!r}: no such directory (a Hub name looks like 'owner/name')")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [*_FETCHED, "*.safetensors"] if weights else _FETCHED
        return Path(snapshot_download(name, revision=wanted or None, allow_patterns=patterns, ignore_patterns=_IGNORED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model {str(model)!r}: no such directory, and not available from the Hub: {reason}") from error


def revision(directory: Path) -> str | None:
    """Return the commit of a Hub snapshot (…/snapshots/COMMIT); None for any other directory."""
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
    """Return the safetensors files of a checkpoint, as listed in its index if it has one; all exist.

    Other programs' copies of the weights (pytorch_model*.bin, consolidated*) are not read, as in transformers.

    Raises:
      UserError: a file is missing, two sets of weights, or an adapter.
    """
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
