"""Several texts' new tokens in one line: weights are read once, and no product is made for padding.

Texts of a decoding batch have unlike numbers of unread tokens. All but attention sees them as one line of N tokens;
attention alone needs each text's own, as the rows of a grid.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from colm_jax.models.arrays import pytree


@pytree
@dataclass(frozen=True)
class Ragged:
    """Where each of N tokens in line belongs. Tokens after the last text's belong to none; their results are unused."""

    starts: Int[Array, "B"]  # each text's first place in the line
    counts: Int[Array, "B"]  # how many it has there, C at most
    text: Int[Array, "N"]  # whose each token is
    offset: Int[Array, "N"]  # its place among its text's new tokens
    cells: Int[Array, "B C"]  # of each cell of the grid: its token's place in the line

    @classmethod
    def of(cls, counts: Int[Array, "B"], tokens: int, chunk: int) -> "Ragged":
        """Return a line of `tokens` places for texts with `counts` new tokens, `chunk` at most each; they must fit."""
        starts = jnp.cumsum(counts) - counts
        places = jnp.arange(tokens)
        text = jnp.minimum(jnp.sum(jnp.cumsum(counts)[:, None] <= places, axis=0), counts.shape[0] - 1)
        offset = jnp.clip(places - starts[text], 0, chunk - 1)
        cells = jnp.minimum(starts[:, None] + jnp.arange(chunk), tokens - 1)
        return cls(starts, counts, text, offset, cells)

    def grid(self, line: Float[Array, "1 N *D"]) -> Float[Array, "B C *D"]:
        """Return each text's tokens in a row of their own. Cells beyond a text's count hold others' tokens."""
        return line[0][self.cells]

    def line(self, grid: Float[Array, "B C *D"]) -> Float[Array, "1 N *D"]:
        """Return the way back."""
        return grid[self.text, self.offset][None]

    def at(self, line: Float[Array, "1 N D"], offsets: Int[Array, "B chosen"]) -> Float[Array, "B chosen D"]:
        """Return what the line holds at these of each text's new tokens; something else for offsets that it has not."""
        return line[0][jnp.clip(self.starts[:, None] + offsets, 0, line.shape[1] - 1)]
