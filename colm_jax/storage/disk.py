"""Files on disk. Each is written beside its place and renamed, so that no reader sees part of one."""

import hashlib
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from colm_jax.errors import MachineError, UserError, no_room
from colm_jax.storage import locks
from colm_jax.storage.protocol import Storage

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str:
    """Return what a file's mode says it is; empty for a regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "")


@contextmanager
def full_disk_is_one_line(path: Path, remedy: str) -> Iterator[None]:
    """Turn the error of any library on a full disk into one line.

    Raises:
      MachineError: naming the file or folder that was being written.
    """
    try:
        yield
    except Exception as error:  # libraries raise their own
        said = no_room(error)
        if said is None or isinstance(error, MachineError):
            raise
        raise MachineError(f"{path}: {said}; {remedy} and rerun the same command") from error


class _Disk:
    """`Storage` on disk."""

    has_links, read_size, full_remedy = True, 2 << 20, "free space"

    def read_range(self, path: Path, start: int, stop: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def modified(self, path: Path) -> float:
        return path.stat().st_mtime

    def sha256(self, path: Path) -> str:
        blob = path.resolve()
        if blob.parent.name == "blobs" and len(blob.name) == 64:
            return blob.name  # the Hub's cache names large files by their hash
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def checksums(self, directory: Path, names: Iterable[str]) -> dict[str, str]:
        return {name: self.sha256(directory / name) for name in names if (directory / name).exists()}

    def files_below(self, directory: Path) -> list[str]:
        return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())

    def check_regular(self, path: Path) -> None:
        try:
            kind = kind_of(path.stat().st_mode)
        except OSError:
            return
        if kind:
            raise UserError(f"{path}: is {kind}, not a file")

    def check_writable(self, path: Path) -> None:
        pass  # the command line checks --out by itself

    def local_copy(self, path: Path) -> Path:
        return path

    def local_copies(self, directory: Path, patterns: Iterable[str]) -> Path:
        return directory

    def local_start(self, path: Path, length: int) -> nullcontext[Path]:
        return nullcontext(path)

    def download(self, path: Path, file: Path) -> None:
        shutil.copyfile(path, file)

    def copy_from(self, source: Path, storage: Storage, path: Path) -> None:
        with self.replacing(path) as beside:
            storage.download(source, beside)

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        beside = path.with_name(path.name + ".tmp")
        with full_disk_is_one_line(path, self.full_remedy):
            try:
                yield beside
                beside.replace(path)
            except BaseException:
                with suppress(OSError):
                    beside.unlink()
                raise

    @contextmanager
    def replacing_directory(self, directory: Path, last: str) -> Iterator[Path]:
        beside = directory.with_name(directory.name + ".tmp")
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        with full_disk_is_one_line(directory, self.full_remedy):
            beside.mkdir(parents=True, exist_ok=True)
            yield beside
            shutil.rmtree(directory, ignore_errors=True)
            beside.replace(directory)

    @contextmanager
    def working_directory(self, directory: Path) -> Iterator[Path]:
        with full_disk_is_one_line(directory, self.full_remedy):
            directory.mkdir(parents=True, exist_ok=True)
            yield directory

    def publish(self, folder: Path, directory: Path, last: str | None, sent: dict[str, float]) -> None:
        pass  # the folder is the directory

    def remove_tree(self, directory: Path) -> None:
        shutil.rmtree(directory)

    locked = staticmethod(locks.locked)


DISK: Storage = _Disk()
