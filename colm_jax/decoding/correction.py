"""Trials of an expert's tokens: strategies `backtrack` and `lookahead`, which may retract them.

Both try candidates at a deferred position (the *place*): the expert's own token first, then the next best under the
mixture of base and expert. The team continues after a candidate for some tokens, and the log-probability that it gives
to its own continuation is the candidate's score. `backtrack` tries the next candidate only when a score falls below a
bound, or when the expert was not sure; `lookahead` tries them all and keeps the best. A deferred token within a trial
ends it under `backtrack`, and is on trial itself; under `lookahead` it is written as usual.

To roll back is to reset lengths: caches are indexed by position, and rows at or beyond a length are masked out.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.strategies import Step
from colm_jax.models.arrays import pytree
from colm_jax.models.gate import log_writers
from colm_jax.settings.generation import Correction


@pytree
@dataclass(frozen=True)
class Trials:
    """The trial of each slot, of C candidates; candidate C: the trial is decided, and the chosen token is rewritten."""

    place: Int[Array, "B"]  # position of the token on trial; -1: none
    candidate: Int[Array, "B"]  # index of the candidate that is written there
    tokens: Int[Array, "B C"]  # candidates tried; the chosen one is stored first in the end
    sources: Int[Array, "B C"]  # source of each
    scores: Float[Array, "B C"]  # nats so far

    @classmethod
    def none(cls, batch: int, candidates: int) -> "Trials":
        """Return no trial in any slot."""
        return cls(
            place=jnp.full((batch,), -1, jnp.int32),
            candidate=jnp.zeros((batch,), jnp.int32),
            tokens=jnp.zeros((batch, candidates), jnp.int32),
            sources=jnp.zeros((batch, candidates), jnp.int32),
            scores=jnp.zeros((batch, candidates), jnp.float32),
        )


@pytree
@dataclass(frozen=True)
class Proposal:
    """What the next token is sampled from, in a trial or not."""

    logits: Float[Array, "B V"]
    source: Int[Array, "B"]  # 0..M
    joint: Float[Array, "B 2 V"]  # log P(z) + log p_z of the base and of the most probable expert
    expert: Int[Array, "B"]  # that expert, 1..M


def propose(
    correction: Correction,
    ahead: bool,
    step: Step,
    logits: Float[Array, "B V"],
    source: Int[Array, "B"],
    trials: Trials,
    positions: Int[Array, "B"],
    ready: Bool[Array, "B"],
) -> tuple[Proposal, Trials]:
    """Replace what plain deferral would write by a candidate, where a trial begins or continues.

    Args:
      correction: settings.
      ahead: strategy `lookahead`.
      step: logits and gate.
      logits: what plain deferral samples from.
      source: its source.
      trials: so far.
      positions: of the token to be written.
      ready: slots that write one now.
    """
    expert = 1 + jnp.argmax(step.gate_logits, axis=-1)
    by_expert = jnp.stack(step.experts, axis=1)
    chosen = jnp.take_along_axis(by_expert, expert[:, None, None] - 1, axis=1)[:, 0]
    log_p = jax.nn.log_softmax(jnp.stack([step.base, chosen], axis=1), axis=-1)
    writers = log_writers(step.gate_logits)
    shares = jnp.stack([writers[:, 0], jnp.take_along_axis(writers, expert[:, None], axis=1)[:, 0]], axis=1)
    joint = shares[..., None] + log_p
    mixture = jax.nn.logsumexp(joint, axis=1)

    unsure = jnp.exp(jnp.max(log_p[:, 1], axis=-1)) < correction.sure
    begins = ready & step.deferred
    begins &= (unsure & (trials.place < 0)) if ahead else (trials.place != positions)
    own = jnp.argmax(chosen, axis=-1).astype(jnp.int32)
    skipped = begins & unsure & (not ahead)
    trials = replace(
        trials,
        place=jnp.where(begins, positions, trials.place),
        candidate=jnp.where(begins, skipped.astype(jnp.int32), trials.candidate),
        tokens=trials.tokens.at[:, 0].set(jnp.where(begins, own, trials.tokens[:, 0])),
        sources=trials.sources.at[:, 0].set(jnp.where(begins, expert, trials.sources[:, 0])),
    )
    here = ready & (trials.place == positions)
    tried = jnp.arange(correction.candidates) < trials.candidate[:, None]
    ids = jnp.where(tried, trials.tokens, logits.shape[1])
    others = jax.vmap(lambda row, ids: row.at[ids].set(-jnp.inf, mode="drop"))(mixture, ids)
    final = jnp.where(jnp.arange(logits.shape[1]) == trials.tokens[:, :1], 0.0, -jnp.inf)
    over = trials.candidate == correction.candidates
    logits = jnp.where((here & over)[:, None], final, logits)
    logits = jnp.where((here & ~over & (trials.candidate > 0))[:, None], others, logits)
    return Proposal(logits, source, joint, expert), trials


def source_of(
    correction: Correction, proposal: Proposal, token: Int[Array, "B"], trials: Trials, positions: Int[Array, "B"]
) -> Int[Array, "B"]:
    """Return the source of a token; of a candidate from the mixture, the model that contributes most to it."""
    parts = jnp.take_along_axis(proposal.joint, token[:, None, None], axis=2)[..., 0]
    most = jnp.where(parts[:, 1] > parts[:, 0], proposal.expert, 0)
    here = trials.place == positions
    over = trials.candidate == correction.candidates
    source = jnp.where(here & ~over & (trials.candidate > 0), most, proposal.source)
    return jnp.where(here & over, trials.sources[:, 0], source)


def judge(
    correction: Correction,
    ahead: bool,
    proposal: Proposal,
    trials: Trials,
    positions: Int[Array, "B"],
    token: Int[Array, "B"],
    source: Int[Array, "B"],
    ready: Bool[Array, "B"],
    ended: Bool[Array, "B"],
) -> tuple[Trials, Bool[Array, "B"]]:
    """Score the trials by the token just written, and end those that are decided.

    Args:
      correction: settings.
      ahead: strategy `lookahead`.
      proposal: what the token was sampled from.
      trials: so far.
      positions: of the token.
      token: the token.
      source: its source.
      ready: slots that wrote one.
      ended: sequences that it ended.

    Returns:
      The trials, and which sequences roll back to their place.
    """
    rows, count = jnp.arange(token.shape[0]), correction.candidates
    here = ready & (trials.place == positions)
    inside = ready & (trials.place >= 0)
    over = here & (trials.candidate == count)
    number = jnp.minimum(trials.candidate, count - 1)
    token_log_p = jnp.take_along_axis(jax.nn.log_softmax(proposal.logits), token[:, None], axis=1)[:, 0]
    prior = jax.nn.logsumexp(jnp.take_along_axis(proposal.joint, token[:, None, None], axis=2)[..., 0], axis=1)
    score = jnp.where(here, prior if ahead else 0.0, trials.scores[rows, number] + token_log_p)
    on_trial = jnp.where(here & ~over, number, count)
    scores = trials.scores.at[rows, jnp.where(inside & ~over, number, count)].set(score, mode="drop")
    tokens = trials.tokens.at[rows, on_trial].set(token, mode="drop")
    sources = trials.sources.at[rows, on_trial].set(source, mode="drop")

    done = inside & ~over & ((positions - trials.place >= correction.watch) | ended)
    more = trials.candidate + 1 < count
    if ahead:
        best = jnp.argmax(scores, axis=1)
        again, chooses = done & more, done & ~more & (best != trials.candidate)
    else:
        best = jnp.zeros_like(number)  # no other was better: the expert's own token
        failed = inside & ~over & (score < correction.bound)
        again, chooses = failed & more, failed & ~more
    back = again | chooses
    tokens = tokens.at[:, 0].set(jnp.where(chooses, tokens[rows, best], tokens[:, 0]))
    sources = sources.at[:, 0].set(jnp.where(chooses, sources[rows, best], sources[:, 0]))
    candidate = jnp.where(chooses, count, trials.candidate + again.astype(jnp.int32))
    place = jnp.where((done & ~back) | over, -1, trials.place)
    return Trials(place, candidate, tokens, sources, scores), back
