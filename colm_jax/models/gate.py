"""The gate: a linear map from what it reads of the base to one logit per expert; the base's own logit is 0.

It reads the base's final hidden state and, with the inputs "uncertainty", also how sure the base is of its next token:
the three values of `models.uncertainty`, of its distribution over the shared vocabulary. They are taken as they are: in
nats, of about the size of a normalised hidden state's components.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from colm_jax.models.arrays import AnyArray
from colm_jax.models.uncertainty import UNCERTAINTY, uncertainty


def gate_width(width: int, inputs: str) -> int:
    """Return how many values a gate reads of a base of this width; `inputs` as `settings.training.GATE_INPUTS`."""
    return width + (len(UNCERTAINTY) if inputs == "uncertainty" else 0)


def gate_row(hidden: Float[AnyArray, "*N D"], measured: Float[AnyArray, "*N 3"] | None) -> Float[Array, "*N I"]:
    """Return what a gate reads, float32: hidden states and, where they are measured, uncertainties."""
    hidden = jnp.asarray(hidden, jnp.float32)
    return hidden if measured is None else jnp.concatenate([hidden, measured], axis=-1)


class Gate(nnx.Module):
    """Who writes the next token: P(Z = 0..M) = softmax(0, g_1..g_M), g = x W (paper, section 2.1). Float32.

    x is the hidden state; with `inputs` "uncertainty", three values longer. Training takes the values as given: no
    gradient passes through them into the base, whose distribution is trained by its likelihood alone.
    """

    def __init__(self, width: int, experts: int, inputs: str = "hidden"):
        """Make a gate of zeros for a base of this width."""
        self.inputs = inputs
        self.kernel = nnx.Param(jnp.zeros((gate_width(width, inputs), experts), jnp.float32), axes=("embed", "experts"))

    @property
    def reads_logits(self) -> bool:
        """Whether it reads the base's next-token distribution."""
        return self.inputs == "uncertainty"

    def __call__(
        self, hidden: Float[AnyArray, "*N D"], logits: Float[AnyArray, "*N V"] | None = None
    ) -> Float[Array, "*N M"]:
        """Return gate logits g, float32.

        Args:
          hidden: the base's final hidden states.
          logits: the base's, over the shared vocabulary, -inf elsewhere; unused unless the gate `reads_logits`.
        """
        if not self.reads_logits:
            return self.of(hidden, None)
        if logits is None:
            raise ValueError("this gate reads the base's logits")
        return self.of(hidden, uncertainty(jax.lax.stop_gradient(jnp.asarray(logits))))

    def of(self, hidden: Float[AnyArray, "*N D"], measured: Float[AnyArray, "*N 3"] | None) -> Float[Array, "*N M"]:
        """Return gate logits where logits are not held whole; `measured` are their uncertainties, if it reads them."""
        return jnp.dot(gate_row(hidden, measured), self.kernel[...], precision=jax.lax.Precision.HIGHEST)


def log_writers(logits: Float[AnyArray, "*N M"]) -> Float[Array, "*N M+1"]:
    """Return log P(Z = 0..M) from gate logits, the base first."""
    base = jnp.zeros_like(logits[..., :1])
    return jax.nn.log_softmax(jnp.concatenate([base, logits], axis=-1), axis=-1)


def p_defer(logits: Float[AnyArray, "*N M"]) -> Float[Array, "*N"]:
    """Return P(Z ≠ 0): the probability that an expert writes."""
    return jax.nn.sigmoid(jax.nn.logsumexp(logits, axis=-1))
