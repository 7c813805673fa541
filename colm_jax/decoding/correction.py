"""Taking back what an expert wrote: strategies `backtrack` and `lookahead`.

Both put candidates to the trial at a token that is deferred (the *place*): the expert's own token first, then the next
best under the mixture of base and expert. The team writes on behind a candidate for some tokens, and the
log-probability that it gives its own continuation is the candidate's score. `backtrack` tries the next candidate only
when a score falls below a bound, or when the expert was not sure; `lookahead` tries them all and keeps the best. A
deferred token within a trial ends it under `backtrack`, and is on trial itself; under `lookahead` it is just written.

Going back is setting lengths back: caches are indexed by position, and rows beyond a length are never read.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from colm_jax.checks import INT32, check_number, check_whole
from colm_jax.decoding.strategies import Step
from colm_jax.models.gate import log_writers


@dataclass(frozen=True)
class Correction:
    """When and how candidates are tried."""

    candidates: int = 3  # at a place, the expert's own token included
    watch: int = 4  # tokens written behind a candidate before it is judged
    bound: float = -4.0  # backtrack: total log-probability (nats) of those tokens below which the next one is tried
    sure: float = 0.5  # the expert's top probability below which backtrack passes its token over, lookahead looks

    def __post_init__(self):
        """Validates the settings."""
        checked = {
            "candidates": check_whole("Correction.candidates", self.candidates, 2, INT32),
            "watch": check_whole("Correction.watch", self.watch, 1, INT32),
            "bound": check_number("Correction.bound", self.bound, most=0),
            "sure": check_number("Correction.sure", self.sure, 0, 1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watch:
    """The trial that each text is in, of C candidates; candidate number C: the trial is over, and one was taken."""

    place: Int[Array, "B"]  # position of the token on trial; -1: none
    candidate: Int[Array, "B"]  # which one stands there
    tokens: Int[Array, "B C"]  # those tried; the one taken comes first in the end
    sources: Int[Array, "B C"]  # who is named as each one's writer
    scores: Float[Array, "B C"]  # nats so far

    @classmethod
    def none(cls, batch: int, candidates: int) -> "Watch":
        """No trial anywhere."""
        return cls(
            place=jnp.full((batch,), -1, jnp.int32),
            candidate=jnp.zeros((batch,), jnp.int32),
            tokens=jnp.zeros((batch, candidates), jnp.int32),
            sources=jnp.zeros((batch, candidates), jnp.int32),
            scores=jnp.zeros((batch, candidates), jnp.float32),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Proposal:
    """What to take a token from, at places where a trial begins or goes on and everywhere else."""

    weights: Float[Array, "B V"]
    source: Int[Array, "B"]  # 0..M
    joint: Float[Array, "B 2 V"]  # log P(z) + log p_z of the base and of the expert that is asked
    expert: Int[Array, "B"]  # that expert, 1..M


def propose(
    correction: Correction,
    ahead: bool,
    step: Step,
    weights: Float[Array, "B V"],
    source: Int[Array, "B"],
    watch: Watch,
    positions: Int[Array, "B"],
    ready: Bool[Array, "B"],
) -> tuple[Proposal, Watch]:
    """Puts candidates in the place of what plain deferral would write.

    Args:
      correction: settings.
      ahead: strategy `lookahead`.
      step: logits and gate.
      weights: what plain deferral takes the token from.
      source: and whom it names.
      watch: trials so far.
      positions: of the token to be written.
      ready: texts that write one now.
    """
    expert = 1 + jnp.argmax(step.gate, axis=-1)
    logits = jnp.stack(step.experts, axis=1)
    chosen = jnp.take_along_axis(logits, expert[:, None, None] - 1, axis=1)[:, 0]
    log_p = jax.nn.log_softmax(jnp.stack([step.base, chosen], axis=1), axis=-1)
    writers = log_writers(step.gate)
    shares = jnp.stack([writers[:, 0], jnp.take_along_axis(writers, expert[:, None], axis=1)[:, 0]], axis=1)
    joint = shares[..., None] + log_p
    mixture = jax.nn.logsumexp(joint, axis=1)

    unsure = jnp.exp(jnp.max(log_p[:, 1], axis=-1)) < correction.sure
    begins = ready & step.deferred
    begins &= (unsure & (watch.place < 0)) if ahead else (watch.place != positions)
    own = jnp.argmax(chosen, axis=-1).astype(jnp.int32)
    passed_over = begins & unsure & (not ahead)
    watch = replace(
        watch,
        place=jnp.where(begins, positions, watch.place),
        candidate=jnp.where(begins, passed_over, watch.candidate),
        tokens=watch.tokens.at[:, 0].set(jnp.where(begins, own, watch.tokens[:, 0])),
        sources=watch.sources.at[:, 0].set(jnp.where(begins, expert, watch.sources[:, 0])),
    )
    here = ready & (watch.place == positions)
    tried = jnp.arange(correction.candidates) < watch.candidate[:, None]
    ids = jnp.where(tried, watch.tokens, weights.shape[1])
    others = jax.vmap(lambda row, ids: row.at[ids].set(-jnp.inf, mode="drop"))(mixture, ids)
    taken = jnp.where(jnp.arange(weights.shape[1]) == watch.tokens[:, :1], 0.0, -jnp.inf)
    over = watch.candidate == correction.candidates
    weights = jnp.where((here & over)[:, None], taken, weights)
    weights = jnp.where((here & ~over & (watch.candidate > 0))[:, None], others, weights)
    return Proposal(weights, source, joint, expert), watch


def writer_of(
    correction: Correction, proposal: Proposal, token: Int[Array, "B"], watch: Watch, positions: Int[Array, "B"]
) -> Int[Array, "B"]:
    """Who is named: of a candidate from the mixture, the model that gave it the most of its probability."""
    parts = jnp.take_along_axis(proposal.joint, token[:, None, None], axis=2)[..., 0]
    most = jnp.where(parts[:, 1] > parts[:, 0], proposal.expert, 0)
    here = watch.place == positions
    over = watch.candidate == correction.candidates
    source = jnp.where(here & ~over & (watch.candidate > 0), most, proposal.source)
    return jnp.where(here & over, watch.sources[:, 0], source)


def judge(
    correction: Correction,
    ahead: bool,
    proposal: Proposal,
    watch: Watch,
    positions: Int[Array, "B"],
    token: Int[Array, "B"],
    source: Int[Array, "B"],
    ready: Bool[Array, "B"],
    ended: Bool[Array, "B"],
) -> tuple[Watch, Bool[Array, "B"]]:
    """Scores the trials by the token just written, and ends those that are decided.

    Args:
      correction: settings.
      ahead: strategy `lookahead`.
      proposal: what the token was taken from.
      watch: trials.
      positions: of the token.
      token: the token.
      source: its writer.
      ready: texts that wrote one.
      ended: texts that it ended.

    Returns:
      The trials, and which texts go back to their place.
    """
    rows, count = jnp.arange(token.shape[0]), correction.candidates
    here = ready & (watch.place == positions)
    inside = ready & (watch.place >= 0)
    over = here & (watch.candidate == count)
    number = jnp.minimum(watch.candidate, count - 1)
    token_log_p = jnp.take_along_axis(jax.nn.log_softmax(proposal.weights), token[:, None], axis=1)[:, 0]
    prior = jax.nn.logsumexp(jnp.take_along_axis(proposal.joint, token[:, None, None], axis=2)[..., 0], axis=1)
    score = jnp.where(here, prior if ahead else 0.0, watch.scores[rows, number] + token_log_p)
    on_trial = jnp.where(here & ~over, number, count)
    scores = watch.scores.at[rows, jnp.where(inside & ~over, number, count)].set(score, mode="drop")
    tokens = watch.tokens.at[rows, on_trial].set(token, mode="drop")
    sources = watch.sources.at[rows, on_trial].set(source, mode="drop")

    done = inside & ~over & ((positions - watch.place >= correction.watch) | ended)
    more = watch.candidate + 1 < count
    if ahead:
        best = jnp.argmax(scores, axis=1)
        again, takes = done & more, done & ~more & (best != watch.candidate)
    else:
        best = jnp.zeros_like(number)  # no other was better: the expert's own token
        failed = inside & ~over & (score < correction.bound)
        again, takes = failed & more, failed & ~more
    back = again | takes
    tokens = tokens.at[:, 0].set(jnp.where(takes, tokens[rows, best], tokens[:, 0]))
    sources = sources.at[:, 0].set(jnp.where(takes, sources[rows, best], sources[:, 0]))
    candidate = jnp.where(takes, count, watch.candidate + again)
    place = jnp.where((done & ~back) | over, -1, watch.place)
    return Watch(place, candidate, tokens, sources, scores), back
