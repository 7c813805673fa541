"""How sure a model is of its next token: what a gate may read beside the hidden state, and what a risk is read from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

UNCERTAINTY = ("entropy", "top_log_prob", "margin")


def uncertainty(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch 3"]:
    """Return a distribution's entropy, its largest log-probability, and how far the second is below it, in nats.

    Args:
      logits: -inf where a token is never written; at least one is finite.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    finite = jnp.isfinite(log_probs)
    entropy = -jnp.sum(jnp.where(finite, jnp.exp(log_probs) * jnp.where(finite, log_probs, 0), 0), axis=-1)
    first = jnp.max(log_probs, axis=-1)
    best = jnp.argmax(log_probs, axis=-1)
    others = jnp.where(jnp.arange(log_probs.shape[-1]) == best[..., None], -jnp.inf, log_probs)
    return as_uncertainty(entropy, first, jnp.max(others, axis=-1))


def as_uncertainty(
    entropy: Float[Array, "*batch"], first: Float[Array, "*batch"], second: Float[Array, "*batch"]
) -> Float[Array, "*batch 3"]:
    """Return `uncertainty` from entropies and the two largest log-probabilities, of which the second may be -inf."""
    return jnp.stack([entropy, first, jnp.minimum(first - second, _LARGEST_MARGIN)], axis=-1)


def of_choice(logits: Float[Array, "B V"], token: Int[Array, "B"]) -> Float[Array, "B 4"]:
    """Return entropy, top log-probability and margin of a distribution, and the log-probability of a token."""
    own = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), token[:, None], axis=-1)
    return jnp.concatenate([uncertainty(logits), own], axis=-1)


_LARGEST_MARGIN = 30.0  # of a token that is the only one, or all but: e^-30 is below float32's rounding of 1
