"""Peak memory of a run of several programs, by the compiler's account and that of JAX's arrays."""

from collections.abc import Callable
from typing import Any

import jax


def live_bytes() -> int:
    """Of all arrays that JAX holds in this process."""
    return sum(array.nbytes for array in jax.live_arrays())


def peak_of(run: Callable[[Callable[[], None]], Any]) -> int:
    """The most memory that JAX's arrays and programs take during a run, in bytes: an upper bound.

    It is the sum of the most bytes of arrays alive, as seen whenever the run looks, and of the most that one of its
    programs needs beside its arguments: temporaries, and results that take no argument's place. Both are exact, to the
    byte and on every device; resident memory would add the compiler's own, which is larger than a small model. What a
    library packs for itself inside a matrix product is in neither.

    Args:
      run: is called with a function that it is to call while what it needs is alive. All that it runs is compiled
        anew, so that it shows.
    """
    client, seen = jax.devices()[0].client, [live_bytes()]
    jax.clear_caches()
    before = client.live_executables()
    run(lambda: seen.append(live_bytes()))
    new = [program for program in client.live_executables() if not any(program is other for other in before)]
    beside = []
    for program in new:
        memory = program.get_compiled_memory_stats()
        beside.append(memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes)
    return max(seen) + max(beside)
