"""Where a command writes: checked before anything is read, and one command's at a time."""

import argparse
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colm_jax.errors import UserError
from colm_jax.pipeline.stage import COMMAND_LOCK, locked_by_first
from colm_jax.storage import check_writable, kind_of, path_of, storage_of

FILES = ("convert", "calibrate", "generate", "evaluate", "judge")  # whose --out is a file; of others it is a directory
_BESIDE = ("{}.tmp", "{}.part", "{}.part.tmp")  # what a command writes beside its file meanwhile
_LOCK = ".{}.colm.lock"  # of a file, and of a directory that is replaced
_LINKS = 40  # symbolic links in a row, as many as Linux follows


def check_out(text: str, is_file: bool, flag: str = "--out") -> Path:
    """Return the path that a flag names for results.

    Links to a file are followed, so that they stay when it is replaced.

    Raises:
      UserError: nothing can be written there, or an entry of another kind is there.
    """
    wanted = "file" if is_file else "directory"
    if text in ("", "-"):
        raise UserError(f"{flag} {text or repr(text)}: results are written to a {wanted}; name one")
    path = path_of(text)
    try:
        if storage_of(path).has_links:
            chain = _chain(path)
            path = chain[-1] if is_file else path
            wrong = _wrong(chain, is_file)
        else:
            wrong = "is a directory" if is_file and path.is_dir() else ""
    except OSError as error:  # a name that is too long, a directory that may not be searched, links in a circle
        wrong = error.strerror or str(error)
    if wrong:
        raise UserError(f"{flag} {text}: {wrong}; name another {wanted}")
    return path


def _chain(path: Path) -> list[Path]:
    """Return a path, and what it links to, step by step."""
    chain = [path]
    while chain[-1].is_symlink():
        if len(chain) > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        chain.append(chain[-1].parent / chain[-1].readlink())
    return chain


def _wrong(chain: list[Path], is_file: bool) -> str:
    """Return why nothing can be written at the end of a chain of links; empty where it can."""
    for path in chain:
        folder = f"{os.path.realpath(path.parent)}/"
        if folder == "/dev/" or folder.startswith(("/proc/", "/sys/")):  # /dev/stdout leads to /proc
            return "is not a place for files"
    target, mode = chain[-1], _mode(chain[-1])
    if mode is None and len(chain) > 1:
        return f"is a link to {target}, which is missing"
    if mode is not None and stat.S_IFMT(mode) != (stat.S_IFREG if is_file else stat.S_IFDIR):
        return f"is {kind_of(mode) or 'a file'}, not a {'file' if is_file else 'directory'}"
    places = target.parents if is_file or mode is None else [target]
    above, mode = next((folder, found) for folder in places if (found := _mode(folder)) is not None)
    if not stat.S_ISDIR(mode):
        return f"{above} is {kind_of(mode) or 'a file'}, not a directory"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"{above} may not be written by this user"
    longest, names = os.pathconf(above, "PC_NAME_MAX"), [*target.relative_to(above).parts]
    beside = [target.with_name(name.format(target.name)) for name in (*_BESIDE, _LOCK)] if is_file else []
    for name in (*names, *(path.name for path in beside)):
        if len(os.fsencode(name)) > longest:
            return f"a name of {len(os.fsencode(name))} bytes is too long, the file system takes {longest}"
    for path in beside:
        if (mode := _mode(path)) is not None and kind_of(mode):
            return f"{path}, which is needed meanwhile, is {kind_of(mode)}"
    return ""


def _mode(path: Path) -> int | None:
    """Return type and permissions; None where nothing is, or can be."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_flags(flags: argparse.Namespace) -> None:
    """Check --out and --store; --out is the path itself afterwards."""
    if getattr(flags, "out", None) is not None:
        flags.out = str(check_out(flags.out, flags.command in FILES))
    if getattr(flags, "store", None) is not None:
        check_out(flags.store, is_file=False, flag="--store")


@contextmanager
def claimed(flags: argparse.Namespace) -> Iterator[None]:
    """Keep other commands out of --out for as long as the block runs; of several processes the first does it for all.

    Jobs that run the trials of one sweep share its directory: each locks its trial.

    Raises:
      UserError: another command works there.
    """
    out = getattr(flags, "out", None)
    if out is None or (flags.command == "sweep" and (flags.commands or flags.trial is not None)):
        yield
        return
    path = path_of(out)
    # `export` replaces its directory, with its contents.
    beside = flags.command in FILES or flags.command == "export"
    lock = path.with_name(_LOCK.format(path.name)) if beside else path / COMMAND_LOCK
    if flags.command in FILES:
        check_writable(path)
    with locked_by_first(lock, f"--out {out}"):
        yield
