"""Log-probabilities of a text's own tokens from hidden states, without ever holding all logits.

The vocabulary is what makes logits large: at 8 texts of 2048 tokens and 128k tokens they would be 8.6 GB in float32. So
the head is applied to a few positions at a time, and once more to each when gradients are taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from colm_jax.models.arrays import AnyArray
from colm_jax.models.decoder import Decoder
from colm_jax.models.uncertainty import uncertainty
from colm_jax.scoring.chunks import LOGIT_BYTES, chunk_size, over_chunks
from colm_jax.scoring.sharded_head import (
    Ids,
    apply_sharded,
    log_share,
    sharded_argmax,
    sharded_scores,
    sharded_uncertainty,
    sharded_unit_scores,
    split_of,
)
from colm_jax.text.spans import Opening


def token_scores(
    logits: Float[AnyArray, "B T V"], tokens: Int[AnyArray, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Return log p(token) and "token is the argmax" at each position, float32."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == tokens


def unit_token_scores(
    logits: Float[AnyArray, "B T V"], tokens: Int[AnyArray, "B T"], before: Int[AnyArray, "B T"], opening: Opening
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Float[Array, "B T"]]:
    """Return `token_scores`, and the log of the opening mass: of all tokens that would open a unit at each position.

    Args:
      logits: at each position.
      tokens: the text's own next tokens.
      before: the tokens that were read last.
      opening: which tokens open a unit after which.
    """
    opens = jnp.asarray(opening.table)[jnp.asarray(opening.after)[before]][..., opening.first[: logits.shape[-1]]]
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    p = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0.0))
    sums = (jnp.sum(jnp.where(kept, p, 0.0), axis=-1) for kept in (opens, ~opens))
    return *token_scores(logits, tokens), log_share(*sums)


@dataclass(frozen=True)
class HeadScores:
    """What one pass through a head gives at each position, float32."""

    log_prob: Float[Array, "B T"]  # of the text's own next token, nats
    is_argmax: Bool[Array, "B T"]  # it is the argmax
    log_opening: Float[Array, "B T"] | None  # of the mass of all tokens that would open a unit; None: not asked for
    uncertainty: Float[Array, "B T 3"] | None  # `models.uncertainty`, without gradient; None: not asked for


def score_head(
    decoder: Decoder,
    hidden: Float[Array, "B T D"],
    tokens: Int[AnyArray, "B T1"],
    allowed: Bool[AnyArray, "A"] | None = None,
    opening: Opening | None = None,
    uncertain: bool = False,
    logit_bytes: int = LOGIT_BYTES,
) -> HeadScores:
    """Return scores of texts' own next tokens from the decoder's logits over the `allowed` ids, a chunk of positions at
    a time.

    Args:
      decoder: whose head is applied.
      hidden: the states of all tokens but each text's last.
      tokens: the texts.
      allowed: the shared vocabulary of A ids; None: all of the head's rows.
      opening: also the opening mass; None: without.
      uncertain: also uncertainties.
      logit_bytes: of a chunk's float32 logits, at most (but for a single position).
    """
    arrays: tuple[Int[AnyArray, "B T"], ...] = (tokens[:, 1:],)
    measures: tuple[Callable, Callable] = token_scores, sharded_scores
    if opening is not None:
        arrays, measures = (tokens[:, 1:], tokens[:, :-1]), (unit_token_scores, sharded_unit_scores)
    if uncertain:
        measures = partial(_and_uncertainty, measures[0]), partial(_and_sharded_uncertainty, measures[1])
    everywhere = () if opening is None else (opening,)
    found = _measured(measures, decoder, hidden, arrays, allowed, logit_bytes, everywhere)
    return HeadScores(found[0], found[1], None if opening is None else found[2], found[-1] if uncertain else None)


def _measured(
    measures: tuple[Callable, Callable],
    decoder: Decoder,
    hidden: Float[Array, "B T D"],
    arrays: tuple[Int[AnyArray, "B T"], ...],
    allowed: Bool[AnyArray, "A"] | None,
    logit_bytes: int,
    everywhere: tuple[Any, ...] = (),
) -> tuple[Shaped[Array, "B T ..."], ...]:
    """Return what the first of the measures makes of whole logits or, where the head is split, the second of parts."""
    split = split_of(decoder, hidden.shape[0])
    if split is None:
        return by_chunks(measures[0], decoder, hidden, arrays, allowed, logit_bytes, everywhere)
    return apply_sharded(measures[1], decoder, split, hidden, arrays, allowed, logit_bytes, everywhere)


def _and_uncertainty(measure: Callable, logits: Float[Array, "B T V"], *rest: Any) -> tuple[Array, ...]:
    return *measure(logits, *rest), uncertainty(jax.lax.stop_gradient(logits))


def _and_sharded_uncertainty(
    measure: Callable, logits: Float[Array, "R t v"], ids: Ids, *rest: Any
) -> tuple[Array, ...]:
    return *measure(logits, ids, *rest), sharded_uncertainty(logits, ids)


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
    measures = token_scores, sharded_scores
    log_prob, is_argmax = _measured(measures, decoder, hidden, (tokens,), allowed, logit_bytes)
    return log_prob, is_argmax


def head_uncertainty(
    decoder: Decoder,
    hidden: Float[Array, "B T D"],
    allowed: Bool[AnyArray, "A"] | None = None,
    logit_bytes: int = LOGIT_BYTES,
) -> Float[Array, "B T 3"]:
    """Return the uncertainty of the decoder's next token at each position; arguments as of `head_scores`."""
    nothing = jnp.zeros(hidden.shape[:2], jnp.int32)
    measures = (
        lambda logits, _: (uncertainty(jax.lax.stop_gradient(logits)),),
        lambda logits, ids, _: (sharded_uncertainty(logits, ids),),
    )
    (found,) = _measured(measures, decoder, hidden, (nothing,), allowed, logit_bytes)
    return found


def head_argmax(
    decoder: Decoder,
    hidden: Float[Array, "B T D"],
    allowed: Bool[AnyArray, "A"] | None = None,
    logit_bytes: int = LOGIT_BYTES,
) -> Int[Array, "B T"]:
    """Return the decoder's greedy choice at each position among the `allowed` ids; arguments as of `head_scores`."""
    nothing = jnp.zeros(hidden.shape[:2], jnp.int32)
    measures = (
        lambda logits, _: (jnp.argmax(logits, axis=-1),),
        lambda logits, ids, _: (sharded_argmax(logits, ids),),
    )
    (found,) = _measured(measures, decoder, hidden, (nothing,), allowed, logit_bytes)
    return found


def by_chunks(
    measure: Callable[..., tuple[Shaped[Array, "B t ..."], ...]],
    decoder: Decoder,
    hidden: Float[Array, "B T D"],
    arrays: tuple[Int[AnyArray, "B T"], ...],
    allowed: Bool[AnyArray, "A"] | None = None,
    logit_bytes: int = LOGIT_BYTES,
    everywhere: tuple[Any, ...] = (),
) -> tuple[Shaped[Array, "B T ..."], ...]:
    """Return what `measure` makes of logits [B,t,V], arrays [B,t] and what is everywhere, arrays [B,t,...], joined over
    chunks of positions.
    """
    chunk = chunk_size(hidden.shape[0], decoder.config.vocab_size, logit_bytes)

    def measured(hidden: Float[Array, "B t D"], *arrays: Int[AnyArray, "B t"]) -> tuple[Shaped[Array, "B t ..."], ...]:
        return measure(decoder.logits(hidden, allowed), *arrays, *everywhere)

    return over_chunks(measured, (hidden, *arrays), chunk)
