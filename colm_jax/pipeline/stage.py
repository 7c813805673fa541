"""The directory of a stage: its files and a manifest. The executor decides by the manifest whether a stage is done.

A stage is stale when content differs, never by time: the manifest holds the hashes of the inputs, the operative
settings and the hashes of the files written. It holds no times, so that a resumed run leaves the same bytes.
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

import colm_jax
from colm_jax.checkpoints.identity import hash_model
from colm_jax.errors import UserError
from colm_jax.parallel import barrier, is_first, on_first
from colm_jax.settings.references import describe
from colm_jax.settings.remote import RemoteSettings
from colm_jax.storage import (
    checksums,
    entries,
    files_below,
    locked,
    make_directory,
    path_of,
    read_json,
    remove_tree,
    sha256_of,
    write_json,
)

SCHEMA = 1
MANIFEST, STARTED = "manifest.json", "started.json"
# Held by the process that works on the stage, and by a command that writes into the stage's directory.
STAGE_LOCK, COMMAND_LOCK = ".stage.lock", ".colm.lock"
BOOKKEEPING = frozenset({MANIFEST, STARTED, STAGE_LOCK, COMMAND_LOCK})  # files that are not a stage's results
_UNHASHED = {"checkpoints", "logs"}  # folders of a stage that no later stage reads; their files hold times
_PACKAGES = (
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


def hash_expert(name: str | Path, directory: Path | None, remote: RemoteSettings, answers: bool = True) -> str:
    """Return the hash of what decides an expert's results: its files or, of an endpoint, address and settings.

    Args:
      name: of the expert.
      directory: its files; None: an endpoint, whose weights are not known.
      remote: how endpoints are asked.
      answers: also what decides its answers, not only its scores.
    """
    if directory is not None:
        return hash_model(directory)
    rules = None if remote.redact is None else sha256_of(path_of(remote.redact))
    facts: list[Any] = [str(name), rules]
    if answers:
        facts += [remote.window, remote.max_expert_calls, remote.max_sent_characters]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def plain(settings: Any) -> Any:
    """Return settings as JSON values: dataclasses become objects, tuples become lists, see `describe`."""
    return json.loads(json.dumps(describe(settings)))


@contextmanager
def locked_by_first(path: Path, subject: str, wait: bool = False) -> Iterator[bool]:
    """Hold `storage.locked` in the first of several processes for all of them; every process must enter."""
    with ExitStack() as held:
        yield on_first(lambda: held.enter_context(locked(path, subject, wait)))


@dataclass(frozen=True)
class StageDirectory:
    """Where a stage writes, and whether it is finished there."""

    name: str
    directory: Path

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the finished stage; None if it is not finished."""
        return self._read(MANIFEST) if (self.directory / MANIFEST).exists() else None

    @property
    def digest(self) -> str:
        """SHA-256 of the finished stage's manifest, an input of the stages that read it."""
        return sha256_of(self.directory / MANIFEST)

    def _is_done(self, identity: dict[str, Any]) -> bool:
        """Return whether the stage is finished for this identity, with every file as it was written."""
        manifest = self.manifest
        if manifest is None or identity != {k: manifest.get(k) for k in _IDENTITY}:
            return False
        files = manifest.get("files")
        if not isinstance(files, dict):
            return False
        found = checksums(self.directory, files)
        # A bucket may report another kind of hash for files that were copied into it: those are read and hashed here.
        return all(n in found and h in (found[n], sha256_of(self.directory / n)) for n, h in files.items())

    def run(self, inputs: Mapping[str, str], settings: Any, work: Callable[[Path], None], wait: bool = False) -> bool:
        """Do the stage's work unless it is done; return whether there was work.

        A directory that an interrupted run left for the same inputs and settings is passed to `work` as it is, so that
        `work` can resume; one for other inputs or settings is emptied first. `work` writes each file under a temporary
        name and renames it. If `work` raises UserError before it has written a file, no directory stays. With several
        processes all call `work`, and the first writes the manifest. A directory on disk is locked meanwhile.

        Args:
          inputs: content hash of each thing that the stage reads, by name.
          settings: everything else that decides the result: a dataclass or JSON values.
          work: writes the stage's files into the directory that it is given.
          wait: wait while another process works on this stage, instead of raising.

        Raises:
          UserError: the directory holds files that no stage wrote, or its bookkeeping files are damaged; nothing in it
            is changed. Another process works on this stage.
        """
        identity = _identity(self.name, inputs, settings)
        with locked_by_first(self.directory / STAGE_LOCK, str(self.directory), wait):
            if on_first(lambda: self._begin(identity)):
                return False
            try:
                work(self.directory)
            except UserError:
                if is_first():
                    self._abandon()
                raise
            barrier()  # the first process hashes the files once all have written theirs
            on_first(lambda: self._finish(identity))
        return True

    def _begin(self, identity: dict[str, Any]) -> bool:
        """Prepare the directory for work; return True instead if the stage is already done."""
        started = self.directory / STARTED
        if self._is_done(identity):
            started.unlink(missing_ok=True)  # a killed process may have left it beside the manifest
            return True
        begun = self._read(STARTED) if started.exists() else None
        ours = begun == {} or any(set(_IDENTITY) <= set(found) for found in (begun, self.manifest) if found)
        present = [path for path in entries(self.directory) if path.name not in (STAGE_LOCK, COMMAND_LOCK)]
        if not ours and any(path.name != f"{STARTED}.tmp" for path in present):
            raise UserError(f"{self.directory}: holds files that are not this program's; name a new directory")
        if present and begun != identity:
            write_json(started, {})  # marks the directory as ours: an interrupted removal is completed by the next run
            for path in present:
                if path.is_dir():
                    remove_tree(path)
                elif path != started:
                    path.unlink(missing_ok=True)
        make_directory(self.directory)
        (self.directory / MANIFEST).unlink(missing_ok=True)
        write_json(started, identity)
        return False

    def _abandon(self) -> None:
        """Remove the bookkeeping files if the work has written nothing; the empty directory goes with its lock."""
        if {path.name for path in entries(self.directory)} <= BOOKKEEPING - {MANIFEST}:
            (self.directory / STARTED).unlink()

    def _read(self, name: str) -> dict[str, Any]:
        """Read a bookkeeping file.

        Raises:
          UserError: it is damaged. It may belong to another program, so nothing is removed.
        """
        try:
            return read_json(self.directory / name)
        except UserError as error:
            raise UserError(f"{error}; delete {self.directory}, or name another directory") from None

    def _finish(self, identity: dict[str, Any]) -> None:
        """Write the manifest, which marks the stage as done."""

        def is_result(name: str) -> bool:
            *folders, file = name.split("/")
            return file not in BOOKKEEPING and not _UNHASHED & set(folders)

        packages = {"colm-jax": colm_jax.__version__, **{name: version(name) for name in _PACKAGES}}
        hashes = checksums(self.directory, filter(is_result, files_below(self.directory)))
        write_json(self.directory / MANIFEST, {**identity, "packages": packages, "files": hashes})
        (self.directory / STARTED).unlink()


def run_in_store(
    stage: StageDirectory, store: Path, inputs: Mapping[str, str], settings: Any, work: Callable[[Path], None]
) -> bool:
    """`StageDirectory.run` for runs that share stages; return whether there was work.

    The files are in STORE/NAME/HASH, where HASH is that of inputs and settings, and the stage's own directory is a
    link to it. If several processes want the same stage at the same time, one works and the others wait.

    Raises:
      UserError: as `StageDirectory.run`; the stage's directory exists and is no link; the file system of `store` has no
        locks.
    """
    identity = _identity(stage.name, inputs, settings)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    stored = StageDirectory(stage.name, store / stage.name / key)
    worked = stored.run(inputs, settings, work, wait=True)
    on_first(lambda: _link(stage.directory, stored.directory))
    return worked


def _link(link: Path, target: Path) -> None:
    """Make `link` a relative link to `target`."""
    if link.is_dir() and not link.is_symlink():
        raise UserError(f"{link}: is a stage of a run without a store; name another directory for this run")
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(link.name + ".tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()), target_is_directory=True)
    temporary.replace(link)


_IDENTITY = ("schema", "stage", "inputs", "settings")  # fields of a manifest that decide whether a stage is stale


def _identity(name: str, inputs: Mapping[str, str], settings: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "stage": name, "inputs": dict(inputs), "settings": plain(settings)}
