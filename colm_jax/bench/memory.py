"""Peak memory of runs of several programs, from the compiler's memory statistics and the sizes of live arrays."""

from collections.abc import Callable
from typing import Any

import jax


def live_bytes() -> int:
    """Return the bytes of all live JAX arrays in this process."""
    return sum(array.nbytes for array in jax.live_arrays())


class PeakMemory:
    """An upper bound of the peak memory of JAX's arrays and programs in runs, in bytes.

    It is the largest total of live arrays, at the times when a run calls `look`, plus the largest memory of a program
    temporarys its arguments: temporaries, and results that do not alias an argument. Both are exact on every device;
    resident memory would include the compiler's own, which exceeds a small model's. Buffers inside a library's matrix
    product are not included.
    """

    def __init__(self, foreign: int):
        """Clear the cache of compiled programs; `foreign` bytes of live arrays are not counted."""
        jax.clear_caches()
        self._foreign, self._client = foreign, jax.devices()[0].client
        self._before = self._client.live_executables()  # kept alive, so that later programs differ from them

    def of(self, run: Callable[[Callable[[], None]], Any]) -> int:
        """Return the peak bytes of a run. It may reuse programs of earlier runs, so measure smaller runs first.

        Args:
          run: the run; it is called with `look`, which it must call while all its arrays are alive.
        """
        arrays, temporary = [0], [0]

        def look() -> None:
            arrays.append(live_bytes())
            for program in self._client.live_executables():
                if not any(program is other for other in self._before):
                    memory = program.get_compiled_memory_stats()
                    more = memory.output_size_in_bytes - memory.alias_size_in_bytes
                    temporary.append(memory.temp_size_in_bytes + more)

        run(look)
        return max(arrays) - self._foreign + max(temporary)
