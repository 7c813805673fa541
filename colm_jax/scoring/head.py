"""Log-probabilities of a text's own tokens from hidden states, without ever holding all logits.

The vocabulary is what makes logits large: at 8 texts of 2048 tokens and 128k words they would be 8.6 GB in float32. So
the head is applied to a few positions at a time, and once more to each when gradients are taken.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from colm_jax.models.arrays import AnyArray
from colm_jax.models.decoder import Decoder

LOGIT_BYTES = 64 << 20  # of the logits that are held at once, over the whole batch


def token_scores(
    logits: Float[AnyArray, "B T V"], tokens: Int[AnyArray, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Return log p(token) and "token is the argmax" at each position, float32."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == tokens


def head_scores(
    decoder: Decoder,
    hidden: Float[Array, "B T D"],
    tokens: Int[AnyArray, "B T"],
    allowed: Bool[AnyArray, "A"] | None = None,
    logit_bytes: int = LOGIT_BYTES,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Return `token_scores` of the decoder's logits over the `allowed` ids, a chunk of positions at a time.

    Args:
      decoder: whose head is applied.
      hidden: the states that predict `tokens`.
      tokens: each text's own next tokens.
      allowed: the shared vocabulary of A ids; None: all of the head's rows.
      logit_bytes: of a chunk's float32 logits, at most (but for a single position).
    """
    log_prob, is_argmax = by_chunks(token_scores, decoder, hidden, tokens, allowed, logit_bytes)
    return log_prob, is_argmax


def head_argmax(
    decoder: Decoder,
    hidden: Float[Array, "B T D"],
    allowed: Bool[AnyArray, "A"] | None = None,
    logit_bytes: int = LOGIT_BYTES,
) -> Int[Array, "B T"]:
    """Return the decoder's greedy choice at each position among the `allowed` ids; arguments as of `head_scores`."""

    def choice(logits: Float[Array, "B t V"], _: Int[Array, "B t"]) -> tuple[Int[Array, "B t"]]:
        return (jnp.argmax(logits, axis=-1),)

    nothing = jnp.zeros(hidden.shape[:2], jnp.int32)
    (found,) = by_chunks(choice, decoder, hidden, nothing, allowed, logit_bytes)
    return found


def by_chunks(
    measure: Callable[..., tuple[Shaped[Array, "B t ..."], ...]],
    decoder: Decoder,
    hidden: Float[Array, "B T D"],
    tokens: Int[AnyArray, "B T"],
    allowed: Bool[AnyArray, "A"] | None = None,
    logit_bytes: int = LOGIT_BYTES,
) -> tuple[Shaped[Array, "B T ..."], ...]:
    """Return what `measure` makes of logits [B,t,V] and tokens [B,t], arrays [B,t,...], joined over chunks of
    positions.
    """
    batch, time = tokens.shape
    chunk = max(1, logit_bytes // (4 * batch * decoder.config.vocab_size))
    if chunk >= time:
        return measure(decoder.logits(hidden, allowed), tokens)

    @jax.checkpoint
    def measured(part: tuple[Float[Array, "B t D"], Int[Array, "B t"]]) -> tuple[Shaped[Array, "B t ..."], ...]:
        return measure(decoder.logits(part[0], allowed), part[1])

    def split(x: Shaped[AnyArray, "B T ..."]) -> Shaped[Array, "chunks B t ..."]:
        padded = jnp.pad(x, ((0, 0), (0, -time % chunk), *((0, 0),) * (x.ndim - 2)))
        return padded.reshape(batch, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    found = jax.lax.map(measured, (split(hidden), split(tokens)))
    return tuple(x.swapaxes(0, 1).reshape(batch, -1, *x.shape[3:])[:, :time] for x in found)
