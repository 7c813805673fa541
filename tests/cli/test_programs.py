"""Programs that commands keep on disk."""

import os
import subprocess
import sys

import pytest

from colm_jax import parallel
from colm_jax.cli import programs
from colm_jax.cli.main import main
from colm_jax.storage.cache import programs_folder

_COMPILE = """
import sys
import jax

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
from colm_jax.cli import programs

jax.default_backend = lambda: sys.argv[2]  # as on a machine of this kind
programs.keep(sys.argv[1])
given = jax.config.values
if given["jax_compilation_cache_dir"] is not None:
    print(given["jax_persistent_cache_min_compile_time_secs"], given["jax_compilation_cache_max_size"], end=" ")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 3 + 1)(2.0)
print(sum(hits))
"""
_GIVEN = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")  # by the user, or by conftest.py
_LIMITS = ["0.2", str(2 * 2**30)]  # shortest compilation, most bytes


def _compile(tmp_path, command: str = "generate", platform: str = "gpu", **environment: str) -> list[str]:
    """Run a process that compiles a program; return the limits, where programs are kept, and how many were found."""
    own = {name: value for name, value in os.environ.items() if name not in _GIVEN}
    own |= {"COLM_CACHE": str(tmp_path / "cache"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, command, platform], env=own, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, "rror" in done.stderr) == (0, False), done.stderr
    return done.stdout.split()


def _kept(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").glob("programs/jit*-cache")}


def test_programs_are_kept_within_limits_and_found_again(tmp_path):
    assert _compile(tmp_path) == [*_LIMITS, "0"]
    kept = _kept(tmp_path)
    assert kept and (tmp_path / "cache/programs").stat().st_mode & 0o77 == 0
    *limits, found = _compile(tmp_path, "train", "tpu")
    assert limits == _LIMITS and int(found) > 0 and _kept(tmp_path) == kept


def test_programs_are_kept_beside_one_whose_writing_was_interrupted(tmp_path):
    _compile(tmp_path)
    folder, kept = tmp_path / "cache/programs", _kept(tmp_path)
    (folder / sorted(kept)[0].replace("-cache", "-atime")).unlink()
    (folder / "half-cache").write_bytes(b"half")
    _compile(tmp_path)
    assert _kept(tmp_path) == kept and not (folder / "half-cache").exists()
    assert len(list(folder.glob("jit*-atime"))) == len(kept)


@pytest.mark.parametrize("command, platform", [("bench", "gpu"), ("plan", "tpu"), ("show", "gpu"), ("generate", "cpu")])
def test_other_commands_and_cpus_keep_none(command, platform, tmp_path):
    assert _compile(tmp_path, command, platform) == ["0"] and not (tmp_path / "cache").exists()


def test_what_jax_is_told_wins(tmp_path):
    other = tmp_path / "other"
    assert _compile(tmp_path, JAX_COMPILATION_CACHE_DIR=str(other)) == ["1.0", "-1", "0"]
    assert list(other.glob("jit*-cache"))
    assert _compile(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == ["0"]
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    assert _compile(tmp_path) == ["0"]

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("COLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert programs_folder() is None


def test_commands_in_one_process_keep_theirs(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(programs, "keep", asked.append)
    monkeypatch.setattr(parallel, "join", lambda where: None)
    command = [
        "score",
        "--model",
        str(tmp_path / "none"),
        "--data",
        str(tmp_path / "none"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(command) == 2 and asked == ["score"]
    assert main([*command, "--distributed", "localhost:1,1,0"]) == 2 and asked == ["score"]
