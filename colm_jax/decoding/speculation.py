"""Exact speculation: while an expert call is pending, the base runs ahead on its own choice of the deferred token.

The base's choices are *drafts*. One expert pass then reads them all, and the tokens are decided in order, each exactly
as the plain loop decides it: from the same logits, with the random key of its position. The first token that differs
from its draft replaces it, and the drafts after it are dropped, since they followed another token. So the result is
that of the plain loop, greedy or sampled, whatever the drafts were (Leviathan et al. 2023, arXiv 2211.17192, for a
draft model; here the keys make the sampled tokens equal, not only their distribution).

The plain loop is the case of one draft, which nothing follows. How far to run ahead (`run_ahead`) is decided for each
slot by how often the base's choice was right so far and by what the passes cost; it changes the time only.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from colm_jax.models.arrays import AnyArray, pytree
from colm_jax.settings.strategies import Strategy

DRAFTS, GUESSES = 16, 8  # most drafts of a slot, and most of them that stand for deferred tokens
_DECAY = 0.97  # of what was observed, at each deferred token
_KEPT_WEIGHT = 16.0  # at most, of what earlier requests showed, in deferred tokens
_PRIOR_DENSITY, _DENSITY_WEIGHT = 0.3, 4.0  # of deferred tokens
_NEARLY = 1.02  # of costs so close, that of the fewest expert passes
_WORTH = 0.97  # run ahead only where the expected time is at most this share of the plain loop's


@dataclass(frozen=True)
class _Prior:
    """How often the base's choice is taken to be right, and with what weight, in deferred tokens."""

    rate: float
    first: float  # weight where nothing was observed
    again: float  # where earlier requests were


# Where the base reads every token, drafts show by themselves whether they would have been right: wait for it. A base
# that is read for drafts only shows nothing without them: try, and try again at times.
_PRIOR, _PRIOR_DRAFTED = _Prior(0.3, 2.0, 0.0), _Prior(0.7, 6.0, 1.0)


@dataclass(frozen=True)
class Speculation:
    """How far the base may run ahead; compiled into the loop."""

    drafts: int = 1  # N: most undecided tokens of a slot; 1: the plain loop
    guesses: int = 1  # most of them that are deferred
    adaptive: bool = True  # as far as it pays; else always as far as it may
    base_cost: float = 1.0  # of a base step, in expert passes
    token_cost: float = 0.0  # of each further token that an expert pass reads, likewise
    draft_model: bool = False  # the base is read for drafts only (strategy `expert`)
    dense: bool = False  # every token is deferred
    keeps_base: bool = True  # the base's logits of drafts, by which deferred tokens are decided too

    @classmethod
    def of(cls, speculate: bool | str, strategy: Strategy, base_cost: float) -> "Speculation":
        """Return what a strategy compiles.

        Args:
          speculate: True, False, or "auto": as far as it pays.
          strategy: the strategy.
          base_cost: of a base step, in expert passes.
        """
        if strategy.calls == "never" or speculate is False:
            return cls(keeps_base=strategy.mixes)
        # Two CPU cores are bound by arithmetic after a few rows (docs/benchmarks.md); accelerators by reading weights.
        token_cost = 0.05 if jax.default_backend() == "cpu" else 0.01
        dense = strategy.calls == "always"
        return cls(
            drafts=GUESSES if dense else DRAFTS,
            guesses=GUESSES,
            adaptive=speculate == "auto",
            base_cost=base_cost,
            token_cost=token_cost,
            draft_model=not strategy.reads_base,
            dense=dense,
            keeps_base=strategy.mixes,
        )

    @property
    def on(self) -> bool:
        """Whether the base may run ahead at all."""
        return self.drafts > 1


@pytree
@dataclass(frozen=True)
class Drafts:
    """Undecided tokens of each slot. Number i is about position lengths + i, where the draft is stored.

    The first is deferred, so that a slot with drafts has a pending call.
    """

    count: Int[Array, "B"]  # 0: no call is pending
    experts: Bool[Array, "B N M"]  # the experts that each token calls; none: the base writes it
    base: Float[Array, "B N _"]  # the base's logits [B, N, V], float32; [B, N, 0] where only its choice counts
    gate_logits: Float[Array, "B N G"]
    evidence: Float[
        Array, "B N _"
    ]  # `models.uncertainty.of_choice` of each draft [B, N, 4]; [B, N, 0] where it is not kept
    ended: Bool[Array, "B"]  # the last draft would end the text
    age: Int[Array, "B"]  # base steps for which the slot waits for an expert pass

    @classmethod
    def none(
        cls, speculation: Speculation, batch: int, experts: int, vocab_size: int, observes: bool = False
    ) -> "Drafts":
        """Return no draft in any slot."""
        size = batch, speculation.drafts
        return cls(
            count=jnp.zeros((batch,), jnp.int32),
            experts=jnp.zeros((*size, experts), bool),
            base=jnp.zeros((*size, vocab_size if speculation.keeps_base else 0), jnp.float32),
            gate_logits=jnp.zeros((*size, max(1, experts)), jnp.float32),
            evidence=jnp.zeros((*size, 4 if observes else 0), jnp.float32),
            ended=jnp.zeros((batch,), bool),
            age=jnp.zeros((batch,), jnp.int32),
        )

    @property
    def calls(self) -> Bool[Array, "B N M"]:
        """The experts that undecided tokens call."""
        return self.experts & (jnp.arange(self.experts.shape[1]) < self.count[:, None])[..., None]

    @property
    def guesses(self) -> Int[Array, "B"]:
        """How many undecided tokens are deferred."""
        return jnp.sum(jnp.any(self.calls, axis=2), axis=1, dtype=jnp.int32)

    def append(
        self,
        rows: Bool[Array, "B"],
        experts: Bool[Array, "B M"],
        base: Float[Array, "B V"],
        gate_logits: Float[Array, "B G"],
        evidence: Float[Array, "B _"],
        ended: Bool[Array, "B"],
    ) -> "Drafts":
        """Add an undecided token to the slots in `rows`; where there are none, nothing is written."""
        place = jnp.cumsum(rows.astype(jnp.int32))
        new = experts, base[:, : self.base.shape[2]], gate_logits, evidence

        def put_row(i: Int[Array, ""], buffers: tuple[Array, ...]) -> tuple[Array, ...]:
            slot = jnp.argmax(place == i + 1)

            def put(buffer: Array, values: Array) -> Array:
                row = jax.lax.dynamic_slice_in_dim(values, slot, 1)[:, None]
                return jax.lax.dynamic_update_slice(buffer, row, (slot, self.count[slot], 0))

            return jax.tree.map(put, buffers, new)

        buffers = self.experts, self.base, self.gate_logits, self.evidence
        experts, base, gate_logits, evidence = jax.lax.fori_loop(0, place[-1], put_row, buffers)
        return replace(
            self,
            count=self.count + rows.astype(jnp.int32),
            experts=experts,
            base=base,
            gate_logits=gate_logits,
            evidence=evidence,
            ended=jnp.where(rows, ended, self.ended),
        )

    def at(
        self, number: Int[Array, ""], choice: Int[Array, "B"], vocab_size: int
    ) -> tuple[Bool[Array, "B M"], Float[Array, "B V"], Float[Array, "B G"]]:
        """Return experts, base logits and gate logits of one undecided token of each slot.

        Args:
          number: of the token.
          choice: the draft; where the base's logits are not kept, they are such that nothing else can be sampled.
          vocab_size: of the shared vocabulary.
        """
        experts, base, gate_logits = (
            jax.lax.dynamic_index_in_dim(x, number, axis=1, keepdims=False)
            for x in (self.experts, self.base, self.gate_logits)
        )
        if base.shape[1] < vocab_size:
            base = jnp.where(jnp.arange(vocab_size) == choice[:, None], 0.0, -jnp.inf)
        return experts, base, gate_logits

    def without(self, rows: Bool[Array, "B"]) -> "Drafts":
        """Return the drafts of all slots but these."""
        none = jnp.zeros_like(self.count)
        return replace(
            self,
            count=jnp.where(rows, none, self.count),
            ended=self.ended & ~rows,
            age=jnp.where(rows, none, self.age),
        )


@pytree
@dataclass(frozen=True)
class Agreement:
    """How often the base's choice of a deferred token was the one written; what follows for each slot."""

    right: Float[AnyArray, "*B"]  # weight of the deferred tokens for which it was
    seen: Float[AnyArray, "*B"]  # of all, the prior included
    deferred: Int[AnyArray, "*B"]  # deferred tokens of the answer so far
    ahead: Int[AnyArray, "*B"]  # deferred tokens that may be undecided at a time; 0: the base is not read for drafts
    guesses: Int[AnyArray, "*B"]  # drafts of deferred tokens after which the base ran on
    hits: Int[AnyArray, "*B"]  # of these, how many were right

    @classmethod
    def starting(cls, speculation: Speculation, right: float = 0.0, seen: float = 0.0) -> "Agreement":
        """Return that of a new request, without axes; `right` and `seen` are those of an earlier one."""
        scale = min(1.0, _KEPT_WEIGHT / seen) if seen else 0.0
        prior = _PRIOR_DRAFTED if speculation.draft_model else _PRIOR
        weight = prior.again if seen else prior.first
        right, seen = right * scale + prior.rate * weight, seen * scale + weight
        none = np.array(0, np.int32)
        one = cls(np.array(right, np.float32), np.array(seen, np.float32), none, none, none, none)
        return replace(one, ahead=run_ahead(speculation, one, none))

    @classmethod
    def none(cls, batch: int) -> "Agreement":
        """Return that of empty slots."""
        numbers = (jnp.zeros((batch,), jnp.int32) for _ in range(4))
        return cls(jnp.zeros((batch,), jnp.float32), jnp.ones((batch,), jnp.float32), *numbers)

    def observed(self, rows: Bool[Array, "B"], right: Bool[Array, "B"], used: Bool[Array, "B"]) -> "Agreement":
        """Add a deferred token of the slots in `rows`: was the draft right, and had the base run on after it."""
        drafted = rows & (self.ahead > 0)

        def decayed(weight: Float[AnyArray, "B"], new: Bool[Array, "B"]) -> Float[Array, "B"]:
            return jnp.where(drafted, _DECAY * weight + new.astype(jnp.float32), weight)

        return replace(
            self,
            right=decayed(self.right, right),
            seen=decayed(self.seen, rows),
            deferred=self.deferred + rows.astype(jnp.int32),
            guesses=self.guesses + (rows & used).astype(jnp.int32),
            hits=self.hits + (rows & used & right).astype(jnp.int32),
        )


@partial(jax.jit, static_argnames="speculation")
def run_ahead(speculation: Speculation, agreement: Agreement, written: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """Return how many deferred tokens of each slot may be undecided at a time, for the least expected time.

    With k of them, of which each is right with probability a, an expert pass decides r = 1 + a + ... + a^(k-1) deferred
    tokens. With a density d of deferred tokens it reads about k / d tokens, and (k - r) / d base steps are wasted. So a
    deferred token takes (1 + token_cost · k / d + base_cost · (k - r) / d) / r expert passes.

    Args:
      speculation: costs.
      agreement: what was observed.
      written: tokens of each answer so far.
    """
    if not speculation.on:
        return jnp.ones_like(written)
    if not speculation.adaptive:
        return jnp.full_like(written, speculation.guesses)
    rate = jnp.clip(agreement.right / agreement.seen, 0.0, 0.99)[..., None]
    density = jnp.ones_like(rate)
    if not speculation.dense:
        deferred = agreement.deferred.astype(jnp.float32) + _PRIOR_DENSITY * _DENSITY_WEIGHT
        density = jnp.clip(deferred / (written.astype(jnp.float32) + _DENSITY_WEIGHT), 0.01, 1.0)[..., None]
    powers = jnp.arange(speculation.guesses, dtype=jnp.float32)
    count, decided = powers + 1.0, jnp.cumsum(rate**powers, axis=-1)
    wasted = speculation.base_cost * (count - decided) / density
    cost = (1.0 + speculation.token_cost * count / density + wasted) / decided
    least = jnp.min(cost, axis=-1)
    best = jnp.max(jnp.where(cost <= _NEARLY * least[..., None], powers, 0.0), axis=-1).astype(jnp.int32)
    if speculation.draft_model:  # base steps are no part of the plain loop
        return jnp.where(least + speculation.base_cost < _WORTH * cost[..., 0], best + 1, 0)
    return jnp.where(least < _WORTH * cost[..., 0], best + 1, 1)
