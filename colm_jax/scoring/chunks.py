"""Apply a function to a few positions of texts at a time, and once more to each when gradients are taken."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from colm_jax.models.arrays import AnyArray

LOGIT_BYTES = 64 << 20  # of the logits that are held at once: over the whole batch or, of a sharded head, on a device
Parts = tuple[Shaped[Array, "_ t ..."], ...]  # arrays of the same positions, each with its own number of rows


def chunk_size(rows: int, vocab_size: int, logit_bytes: int = LOGIT_BYTES) -> int:
    """Return positions of so many rows whose float32 logits take at most `logit_bytes`; at least one."""
    return max(1, logit_bytes // (4 * rows * vocab_size))


def over_chunks(
    function: Callable[..., Parts], arrays: tuple[Shaped[AnyArray, "_ T ..."], ...], chunk: int
) -> tuple[Shaped[Array, "_ T ..."], ...]:
    """Return the results of `function(*arrays)`, computed for at most `chunk` of the T positions at a time.

    The function's results at a position must depend on the arrays at that position alone. Each chunk's intermediate
    values are computed again for its gradient, so that one chunk's are held at a time.
    """
    time = arrays[0].shape[1]
    if chunk >= time:
        return function(*arrays)

    def split(x: Shaped[AnyArray, "B T ..."]) -> Shaped[Array, "chunks B t ..."]:
        padded = jnp.pad(x, ((0, 0), (0, -time % chunk), *((0, 0),) * (x.ndim - 2)))
        return padded.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    found = jax.lax.map(jax.checkpoint(lambda parts: function(*parts)), tuple(split(x) for x in arrays))
    return tuple(x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :time] for x in found)
