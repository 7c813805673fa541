"""Which tokens open a unit, on the devices: a model's `Opening` beside the tokens that it may write."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from colm_jax.models.arrays import pytree
from colm_jax.text.spans import ALWAYS, SEAM, Opening


@pytree
@dataclass(frozen=True)
class OpeningTable:
    """Token v opens a unit after class c if table[c, first[v]]; classes are those of `text.spans`."""

    after: Int[Array, "V"]  # class of what a token ends with
    first: Int[Array, "V"]  # class of what a token begins with
    table: Bool[Array, "C F"]
    ends: Bool[Array, "V"]  # tokens that end a text; none where every token is a unit
    closable: Bool[Array, "C"]  # some token that is no end of text opens a unit after it

    @classmethod
    def of(cls, opening: Opening, allowed: Bool[np.ndarray, "V"]) -> "OpeningTable":
        """Return the table of a model that may write the `allowed` ones of its tokens."""
        after, first = opening.after[: len(allowed)], opening.first[: len(allowed)]
        ends = first == ALWAYS
        closable = opening.table[:, np.unique(first[allowed & ~ends])].any(axis=1)
        return cls(*map(jnp.asarray, (after, first, opening.table, ends, closable)))

    def before(self, last: Int[Array, "B"], seam: Bool[Array, "B"]) -> Int[Array, "B"]:
        """Return the class of what each sequence ends with: its last token, or the prompt's end (`seam`)."""
        return jnp.where(seam, SEAM, self.after[last])

    def opens(self, before: Int[Array, "B"], token: Int[Array, "B"]) -> Bool[Array, "B"]:
        """Return whether each token opens a unit after what is before it."""
        return self.table[before, self.first[token]]

    def opening(self, before: Int[Array, "B"]) -> Bool[Array, "B V"]:
        """Return which tokens open a unit after each class."""
        return self.table[before][:, self.first]
