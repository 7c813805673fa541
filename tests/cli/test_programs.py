"""Programs that commands keep on disk."""

import os
import subprocess
import sys

import pytest

_COMPILE = """
import sys
import jax
from colm_jax.cli import programs

programs.keep(sys.argv[1])
jax.jit(lambda x: x * 3 + 1)(2.0)
print(jax.config.jax_compilation_cache_max_size)
"""
_GIVEN = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")  # by whoever runs the tests, or by conftest.py


def _programs(tmp_path, command: str = "generate", **environment: str) -> tuple[int, int]:
    """Run a process that compiles a program; return the number of programs kept, and the most bytes they may take."""
    cache = tmp_path / "cache"
    own = {name: value for name, value in os.environ.items() if name not in _GIVEN}
    own |= {"COLM_CACHE": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **environment}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, command], env=own, capture_output=True, text=True, check=True, timeout=300
    )
    assert "rror" not in done.stderr, done.stderr
    return len(list(cache.glob("programs/jit*-cache"))), int(done.stdout)


def test_programs_are_kept_and_limited_in_size(tmp_path):
    kept, most = _programs(tmp_path)
    assert kept > 0 and most == 4 * 2**30
    assert _programs(tmp_path) == (kept, most)  # and found again


@pytest.mark.parametrize("command", ["bench", "plan"])
def test_commands_that_report_on_the_compiler_keep_none(command, tmp_path):
    assert _programs(tmp_path, command) == (0, -1)


def test_jaxs_own_settings_win(tmp_path):
    assert _programs(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other")) == (0, -1)
    assert list((tmp_path / "other").glob("jit*-cache"))
    assert _programs(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[0] == 0
    assert _programs(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE="1000000000")[1] == 1_000_000_000


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert _programs(tmp_path) == (0, -1)
