"""Compiled programs, which JAX keeps on disk for later commands: compiling takes longer than much of the work.

They are kept on accelerators. On some CPUs, JAX complains at length where it reads one, or crashes
(github.com/jax-ml/jax/issues/38445); who sets JAX_COMPILATION_CACHE_DIR has them there, too. Those of several processes
are not kept: the hosts' disks would hold different ones, and GPUs of a job tune programs together.
"""

from pathlib import Path

import jax

from colm_jax.storage.cache import programs_folder

_COMMANDS = ("calibrate", "demo", "generate", "lm_eval", "refresh", "run", "score", "serve", "train")
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.2,  # those that took less are not kept
    "jax_compilation_cache_max_size": 2 * 2**30,  # bytes; the program that was not used for longest goes
    "jax_persistent_cache_enable_xla_caches": "none",  # others, without a limit, which several commands cannot share
}


def keep(command: str) -> None:
    """Let JAX keep the programs of a command that runs models, unless JAX was told where, or not at all."""
    given = jax.config.values
    told = given["jax_compilation_cache_dir"] is not None or not given["jax_enable_compilation_cache"]
    if command not in _COMMANDS or told or jax.default_backend() == "cpu":
        return
    if (folder := programs_folder()) is None:
        return
    _remove_incomplete(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in _SETTINGS.items():
        jax.config.update(name, value)


def _remove_incomplete(folder: Path) -> None:
    """Remove programs whose writing was interrupted: JAX 0.10 would write no other one beside them."""
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            program.unlink(missing_ok=True)
