"""What the decoding loop knows of each token that it writes: it tells the risk that the answer goes wrong there.

It is kept only where it is asked for (`LoopConfig.observes`): by a team that has learned its risks (`decoding.risk`),
and by calibration, which learns them.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_LARGEST_ODDS = 15.0


def evidence_of(
    p_defer: Float[Array, "B"],
    source: Int[Array, "B"],
    base: Float[Array, "B 4"],
    agrees: Bool[Array, "B"],
    alone: Bool[Array, "B"],
    writer: Float[Array, "B 3"],
) -> Float[Array, "B E"]:
    """Return the columns `decoding.risk.EVIDENCE`.

    Args:
      p_defer: of the gate.
      source: 0 the base, 1..M an expert.
      base: `models.uncertainty.of_choice` of the base's distribution and its own choice.
      agrees: the token is that choice.
      alone: the base wrote it, and nobody else was asked.
      writer: log-probability, entropy and margin where it did not; NaN where they are not known.
    """
    odds = jnp.clip(jnp.log(p_defer) - jnp.log1p(-p_defer), -_LARGEST_ODDS, _LARGEST_ODDS)
    own = jnp.stack([base[:, 3], base[:, 0], base[:, 2]], axis=-1)
    by_expert = source > 0
    flags = by_expert.astype(jnp.float32), agrees.astype(jnp.float32)
    known = jnp.where(alone[:, None], own, writer)
    return jnp.concatenate([jnp.stack([odds, flags[0]], -1), base[:, :3], flags[1][:, None], known], axis=-1)
