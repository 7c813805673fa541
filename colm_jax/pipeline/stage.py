"""A stage: a directory with its files and a manifest; done once for the same inputs, taken up where it was stopped.

What is stale is decided by content: the manifest holds hashes of the inputs, the operative settings and the hashes of
the files written. It holds no times, so that a run that was stopped and went on leaves the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colm_jax.errors import UserError
from colm_jax.parallel import barrier, is_first, on_first
from colm_jax.settings.references import describe
from colm_jax.storage import (
    checksums,
    entries,
    files_below,
    locked,
    make_directory,
    read_json,
    remove_tree,
    sha256_of,
    write_json,
)

SCHEMA = 1
MANIFEST, STARTED = "manifest.json", "started.json"
# Of the process that works at the stage, and of a command that has the stage's directory as its --out.
STAGE_LOCK, COMMAND_LOCK = ".stage.lock", ".colm.lock"
BOOKS = frozenset({MANIFEST, STARTED, STAGE_LOCK, COMMAND_LOCK})  # files that are not a stage's results
_PASSING = {"checkpoints", "logs"}  # folders of a stage that no later one reads, and that hold times
_PACKAGES = (
    "colm-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array_record",
    "qwix",
    "scipy",
    "transformers",
    "tokenizers",
)


def hash_model(directory: Path) -> str:
    """SHA-256 over everything of a model directory that decides what it computes (see `storage.checksums`)."""
    patterns = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "*token*.json")
    names = sorted(
        {path.name for pattern in (*patterns, "colm.json", "*.jinja", "*.model") for path in directory.glob(pattern)}
    )
    hashes = checksums(directory, names)
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in names).encode()).hexdigest()


def plain(settings: Any) -> Any:
    """Settings as JSON holds them: dataclasses as objects, tuples as lists, the user's own objects by what they are."""
    return json.loads(json.dumps(describe(settings)))


@contextmanager
def locked_by_first(path: Path, subject: str, wait: bool = False) -> Iterator[bool]:
    """`storage.locked`, held by the first of several processes for all of them; all have to enter."""
    with ExitStack() as held:
        yield on_first(lambda: held.enter_context(locked(path, subject, wait)))


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    directory: Path

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the finished stage says of itself; None where it is not finished."""
        return self._read(MANIFEST) if (self.directory / MANIFEST).exists() else None

    @property
    def digest(self) -> str:
        """Hash of the finished stage, an input of those that follow."""
        return sha256_of(self.directory / MANIFEST)

    def _is_done(self, request: dict[str, Any]) -> bool:
        """Whether the stage stands finished for what is asked, with every file as it was written."""
        manifest = self.manifest
        if manifest is None or request != {k: manifest.get(k) for k in _REQUEST}:
            return False
        files = manifest.get("files")
        if not isinstance(files, dict):
            return False
        found = checksums(self.directory, files)
        # Of what others have copied into a bucket, the bucket may know another hash: then it is read.
        return all(n in found and h in (found[n], sha256_of(self.directory / n)) for n, h in files.items())

    def run(self, inputs: Mapping[str, str], settings: Any, work: Callable[[Path], None], wait: bool = False) -> bool:
        """Does the stage's work unless it is done. Returns whether it worked.

        A directory that an earlier run began for the same inputs and settings is handed to `work` as it is; one begun
        for others is emptied first. `work` writes each file beside its place and renames it. Where it finds the inputs
        wrong before it has written a file, no directory stays behind. Of several processes all do the work together,
        and the first writes the manifest. On disk, the directory is locked meanwhile.

        Args:
          inputs: hashes of what the stage reads, by name.
          settings: what else decides the result, a dataclass or what JSON holds.
          work: writes the stage's files into the directory that it is given.
          wait: wait for another run that works at this stage, rather than refuse.

        Raises:
          UserError: the directory holds files that no stage wrote, or its books are damaged; nothing in it is touched.
            Another run works at this stage.
        """
        request = _request(self.name, inputs, settings)
        with locked_by_first(self.directory / STAGE_LOCK, str(self.directory), wait):
            if on_first(lambda: self._begin(request)):
                return False
            try:
                work(self.directory)
            except UserError:
                if is_first():
                    self._abandon()
                raise
            barrier()  # so that the first does not look before all have written
            on_first(lambda: self._finish(request))
        return True

    def _begin(self, request: dict[str, Any]) -> bool:
        """Makes the directory ready, unless the stage stands finished; whether it does."""
        started = self.directory / STARTED
        if self._is_done(request):
            started.unlink(missing_ok=True)  # a kill may have left it beside the manifest
            return True
        begun = self._read(STARTED) if started.exists() else None
        ours = begun == {} or any(set(_REQUEST) <= set(book) for book in (begun, self.manifest) if book)
        found = [path for path in entries(self.directory) if path.name not in (STAGE_LOCK, COMMAND_LOCK)]
        if not ours and any(path.name != f"{STARTED}.tmp" for path in found):
            raise UserError(f"{self.directory}: holds files that are not this program's; name a new directory")
        if found and begun != request:
            write_json(started, {})  # begun for nothing: if this is cut short, the rest is emptied too
            for path in found:
                if path.is_dir():
                    remove_tree(path)
                elif path != started:
                    path.unlink(missing_ok=True)
        make_directory(self.directory)
        (self.directory / MANIFEST).unlink(missing_ok=True)
        write_json(started, request)
        return False

    def _abandon(self) -> None:
        """Takes the books away where the work has written nothing; the empty directory goes with its lock."""
        if {path.name for path in entries(self.directory)} <= BOOKS - {MANIFEST}:
            (self.directory / STARTED).unlink()

    def _read(self, name: str) -> dict[str, Any]:
        """One of the bookkeeping files.

        Raises:
          UserError: it is damaged. It may also be another program's, so nothing is removed.
        """
        try:
            return read_json(self.directory / name)
        except UserError as error:
            raise UserError(f"{error}; delete {self.directory}, or name another directory") from None

    def _finish(self, request: dict[str, Any]) -> None:
        """Writes the manifest, which says that the stage is done."""

        def lasting(name: str) -> bool:
            *folders, file = name.split("/")
            return file not in BOOKS and not _PASSING & set(folders)

        packages = {name: version(name) for name in _PACKAGES}
        hashes = checksums(self.directory, filter(lasting, files_below(self.directory)))
        write_json(self.directory / MANIFEST, {**request, "packages": packages, "files": hashes})
        (self.directory / STARTED).unlink()


def run_in_store(stage: Stage, store: Path, inputs: Mapping[str, str], settings: Any, work) -> bool:
    """`Stage.run` where several runs share their stages. Returns whether it worked.

    The stage's files lie under `store`, in a directory named by a hash of inputs and settings, and the stage's own
    directory is a link to it. Of runs that want the same stage at the same time one works, and the others wait.

    Raises:
      UserError: as `Stage.run`; the stage's directory stands there and is no link; `store` is on a file system without
        locks.
    """
    request = _request(stage.name, inputs, settings)
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    stored = Stage(stage.name, store / stage.name / key)
    worked = stored.run(inputs, settings, work, wait=True)
    on_first(lambda: _link(stage.directory, stored.directory))
    return worked


def _link(link: Path, target: Path) -> None:
    """Makes `link` a relative link to `target`."""
    if link.is_dir() and not link.is_symlink():
        raise UserError(f"{link}: is a stage of a run that shares none; name another directory")
    link.parent.mkdir(parents=True, exist_ok=True)
    beside = link.with_name(link.name + ".tmp")
    beside.unlink(missing_ok=True)
    beside.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
    beside.replace(link)


_REQUEST = ("schema", "stage", "inputs", "settings")


def _request(name: str, inputs: Mapping[str, str], settings: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "stage": name, "inputs": dict(inputs), "settings": plain(settings)}
