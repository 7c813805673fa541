"""What a layer's attention is given beside the residual stream, and what it returns for the cache."""

from dataclasses import dataclass

from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import AnyArray, pytree
from colm_jax.models.blockwise import Past
from colm_jax.models.causal import WindowChoice
from colm_jax.models.ragged import Ragged
from colm_jax.models.rope import Angles

KeyValue = tuple[Float[Array, "R K T h"], Float[Array, "R K T v"]]  # of the new tokens, in one layer


@pytree
@dataclass(frozen=True)
class LayerInputs:
    """What one layer's attention is given beside the residual stream.

    There are R rows of tokens: one row per sequence, or a single row with the tokens of all sequences (`Ragged`).
    """

    angles: Angles  # of rotary positions
    rotated: bool | Bool[Array, ""] = True  # whether the layer has rotary positions
    temperature: Float[Array, "R T"] | None = None  # factor of each token's queries
    window: int | WindowChoice | None = None  # tokens that each one sees, itself included; None: all
    past: Past | None = None  # keys and values of earlier tokens
    segments: Int[AnyArray, "R T"] | None = None  # which text of its row each token belongs to
    ragged: Ragged | None = None
