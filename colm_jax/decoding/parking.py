"""How long texts that call an expert are parked, while the others write on, before one expert pass serves them all."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from colm_jax.checks import INT32, check_whole


@dataclass(frozen=True)
class Parking:
    """Experts are called when `texts` wait, or one has waited for `steps` steps of the base, or nobody can write on.

    No result depends on it: only how many expert passes a batch takes, and how many
    steps of the base. Waiting about as many steps as a pass costs is never much worse than the best fixed number of
    texts, as when one hires skis until the hire has cost as much as skis do: in batches of 4 to 32, with passes that
    cost 2 to 16 steps and deferral rates from 5 to 50 %, within a tenth of it in 40 of 48 cases and at worst a fifth
    dearer (`python -m tests.decoding.parking_table`).
    """

    texts: int
    steps: int

    def __post_init__(self):
        """Validates the numbers."""
        object.__setattr__(self, "texts", check_whole("Parking.texts", self.texts, 1, INT32))
        object.__setattr__(self, "steps", check_whole("Parking.steps", self.steps, 0, INT32))

    def over(self, waiting: Bool[Array, "B"], waited: Int[Array, "B"]) -> Bool[Array, ""]:
        """Whether those that wait have waited enough.

        Args:
          waiting: texts that wait.
          waited: for how many steps.
        """
        return (jnp.sum(waiting) >= self.texts) | jnp.any(waiting & (waited >= self.steps))
