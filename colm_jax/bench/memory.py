"""Peak memory of runs of several programs, by the account of the compiler and of JAX's arrays."""

from collections.abc import Callable
from typing import Any

import jax


def live_bytes() -> int:
    """Of all arrays that JAX holds in this process."""
    return sum(array.nbytes for array in jax.live_arrays())


class PeakMemory:
    """The most memory that JAX's arrays and programs take in runs, in bytes: an upper bound.

    It is the sum of the most bytes of arrays alive, as seen whenever a run looks, and of the most that a program needs
    beside its arguments: temporaries, and results that take no argument's place. Both are exact, to the byte and on
    every device; resident memory would add the compiler's own, which is more than a small model. What a library packs
    for itself inside a matrix product is in neither.
    """

    def __init__(self, foreign: int):
        """Forgets all compiled programs, so that those of the runs show; `foreign` bytes of arrays do not count."""
        jax.clear_caches()
        self._foreign, self._client = foreign, jax.devices()[0].client
        self._before = self._client.live_executables()  # held, so that none of the later ones is taken for one of them

    def of(self, run: Callable[[Callable[[], None]], Any]) -> int:
        """Of one run, which may reuse programs of those before it: smaller runs come first.

        Args:
          run: is called with a function that it has to call while all that it needs is alive.
        """
        arrays, beside = [0], [0]

        def look() -> None:
            arrays.append(live_bytes())
            for program in self._client.live_executables():
                if not any(program is other for other in self._before):
                    memory = program.get_compiled_memory_stats()
                    more = memory.output_size_in_bytes - memory.alias_size_in_bytes
                    beside.append(memory.temp_size_in_bytes + more)

        run(look)
        return max(arrays) - self._foreign + max(beside)
