"""Compiled programs, which JAX keeps on disk for later commands: compiling takes longer than much of the work.

Those of several processes are not kept: each would find others on its own disk, and GPUs tune programs together.
"""

import os

import jax

from colm_jax.storage.cache import programs_folder

_FOLDER = "jax_compilation_cache_dir"
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.2,  # those that took less are not kept
    "jax_compilation_cache_max_size": 4 * 2**30,  # bytes; the program that was not used for longest goes
}
_OTHERS = ("bench", "plan")  # their compiler's own figures are what these commands report


def keep(command: str) -> None:
    """Let JAX keep the programs of a command, unless its own environment variable says where."""
    if command in _OTHERS or _FOLDER.upper() in os.environ:
        return
    if (folder := programs_folder()) is None:
        return
    jax.config.update(_FOLDER, str(folder))
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
