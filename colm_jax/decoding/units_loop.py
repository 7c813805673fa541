"""The base's part of decoding by units: one jitted loop over its decode steps, and how an expert's unit comes back.

In a step the base reads each running sequence's last token and samples the next. Where that token opens a new unit, the
gate decides: the base writes it, or the sequence waits, with a pending call, for an expert that writes the unit
outside the loop. Within a unit the base asks nobody. A unit that an expert has closed is closed: the base's next token
is one that opens another.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.evidence import evidence_of
from colm_jax.decoding.position import is_deferred, next_token, position_keys, position_threshold, written
from colm_jax.decoding.state import (
    EOS,
    LENGTH,
    STOP,
    UNFINISHED,
    DecodingState,
    Graphs,
    LoopConfig,
    Models,
    UnitState,
)
from colm_jax.experts.opening import OpeningTable
from colm_jax.models.arrays import pytree
from colm_jax.models.cache import no_rows
from colm_jax.models.gate import p_defer
from colm_jax.models.sampling import sample
from colm_jax.models.uncertainty import of_choice


@pytree
@dataclass(frozen=True)
class Outlook:
    """What the host needs to know between two runs of the loop."""

    runnable: Bool[Array, "B"]
    expert: Int[Array, "B"]  # that is called; 0: no call is pending
    age: Int[Array, "B"]  # base steps for which the call has been pending
    lengths: Int[Array, "B"]
    keys: Array  # [B] PRNG keys of the next position


@pytree
@dataclass(frozen=True)
class Answers:
    """What experts have written."""

    served: Bool[Array, "B"]  # the slots whose calls are answered
    tokens: Int[Array, "B W"]  # of the base
    counts: Int[Array, "B"]  # 0: there is no unit; the base writes its own choice, if the text does not end here
    finish: Int[Array, "B"]  # why the text ends after these tokens: UNFINISHED, EOS or STOP
    asked: Bool[Array, "B"]  # the expert was asked: an expert call
    evidence: Float[Array, "B 3"]  # log-probability, entropy and margin of the unit; NaN where they are not known


def _units(state: DecodingState) -> UnitState:
    assert state.units is not None
    return state.units


def _runnable(state: DecodingState) -> Bool[Array, "B"]:
    """Return the sequences that the base may continue."""
    return (state.finish == UNFINISHED) & (_units(state).expert == 0)


@jax.jit
def outlook(state: DecodingState) -> Outlook:
    """Return what the host needs to know."""
    units, pending = _units(state), (state.finish == UNFINISHED) & (_units(state).expert > 0)
    expert = jnp.where(pending, units.expert, 0)
    return Outlook(_runnable(state), expert, units.age, state.lengths, position_keys(state))


@partial(jax.jit, static_argnames=("graphs", "config", "shared"), donate_argnames="state")
def run_units(
    graphs: Graphs,
    config: LoopConfig,
    models: Models,
    table: OpeningTable,
    state: DecodingState,
    started: Bool[Array, "B"],
    steps: Int[Array, ""],
    shared: bool,
) -> DecodingState:
    """Run at most `steps` base steps, until pending calls are to be served or no sequence can continue without.

    Args:
      graphs: static halves of base and gate.
      config: what is compiled into the loop.
      models: their weights.
      table: which tokens of the base open a unit.
      state: the batch; all but the last token of each running sequence is in the base's cache.
      started: slots whose pending call an expert is answering already.
      steps: of the base.
      shared: experts write the base's tokens, and may end a text.
    """
    until = state.steps + steps

    def continues(state: DecodingState) -> Bool[Array, ""]:
        waiting = (state.finish == UNFINISHED) & (_units(state).expert > 0) & ~started
        many = jnp.sum(waiting) >= config.batching.calls
        due = many | jnp.any(waiting & (_units(state).age >= config.batching.steps))
        return jnp.any(_runnable(state)) & (state.steps < until) & ~due

    step = partial(_base_step, graphs, config, models, table, shared)
    return jax.lax.while_loop(continues, step, state)


def _base_step(
    graphs: Graphs, config: LoopConfig, models: Models, table: OpeningTable, shared: bool, state: DecodingState
) -> DecodingState:
    """Run one decode step: each runnable sequence gets its next token, or a pending call."""
    runnable, units, (cache,) = _runnable(state), _units(state), state.caches
    batch, vocab_size = runnable.shape[0], models.allowed.shape[0]
    base = nnx.merge(graphs.base, models.base)

    def read():
        hidden, rows = base(next_token(state.tokens, cache.lengths), cache)
        return hidden[:, 0], base.logits(hidden[:, 0], models.allowed), rows

    def idle():
        nothing = jnp.zeros((batch, base.config.width), base.dtype), jnp.zeros((batch, vocab_size), jnp.float32)
        return *nothing, no_rows(base.config, batch, 1, base.dtype)

    # Always true here; it keeps XLA from copying the cache before the write below (`decoding.loop`).
    hidden, logits, rows = jax.lax.cond(jnp.any(runnable), read, idle)
    cache = cache.write(rows, runnable.astype(jnp.int32))
    gate_logits = jnp.zeros((batch, 1), jnp.float32)
    if config.strategy.needs_gate and graphs.gate is not None:
        gate_logits = nnx.merge(graphs.gate, models.gate)(hidden, logits)
    before = table.before(next_token(state.tokens, state.lengths - 1)[:, 0], written(state) == 0)
    limited = runnable & units.closed & table.closable[before]
    logits = jax.lax.cond(
        jnp.any(limited),
        lambda: jnp.where(limited[:, None] & ~table.opening(before), -jnp.inf, logits),
        lambda: logits,
    )
    token = sample(logits, position_keys(state), state.requests.sampling, runnable)
    opens = (written(state) == 0) | table.opens(before, token)
    expert = _called(config, state, gate_logits)
    if config.strategy.calls == "always" and not shared:  # then the base alone ends texts, and where is its choice
        expert = jnp.where(_is_in(token, config.eos_ids), 0, expert)
    waits = runnable & opens & (expert > 0)
    begins = runnable & opens
    known = of_choice(logits, token) if config.observes else units.base
    units = replace(
        units,
        base=jnp.where(runnable[:, None], known, units.base),
        expert=jnp.where(waits, expert, units.expert),
        choice=jnp.where(waits, token, units.choice),
        age=jnp.where(runnable, 0, units.age + 1),
        p_defer=jnp.where(begins, p_defer(gate_logits), units.p_defer),
        threshold=jnp.where(begins, position_threshold(state), units.threshold),
    )
    state = replace(state, caches=(cache,), steps=state.steps + 1, units=units)
    return _write(config, state, token, runnable & ~waits, begins)


def _called(config: LoopConfig, state: DecodingState, gate_logits: Array) -> Int[Array, "B"]:
    """Return the expert (1..M) that writes the next unit where one begins; 0: the base does."""
    strategy, zeros = config.strategy, jnp.zeros_like(state.lengths)
    if strategy.calls == "never":
        return zeros
    if strategy.calls == "always":
        return zeros + 1
    best = 1 + jnp.argmax(gate_logits, axis=1).astype(jnp.int32)
    return jnp.where(is_deferred(strategy, state, gate_logits), best, 0)


def _is_in(token: Int[Array, "B"], ids: tuple[int, ...]) -> Bool[Array, "B"]:
    return jnp.isin(token, jnp.array(ids, jnp.int32))


def _write(
    config: LoopConfig, state: DecodingState, token: Int[Array, "B"], rows: Bool[Array, "B"], begins: Bool[Array, "B"]
) -> DecodingState:
    """Write the base's token in some slots; `begins`: it is the first of a unit."""
    ended = rows & _is_in(token, config.eos_ids)
    writes, own = rows & ~ended, jnp.zeros_like(token)
    evidence = evidence_of(
        _units(state).p_defer, own, _units(state).base, own == 0, own == 0, _units(state).base[:, :3]
    )
    state = _put(state, token[:, None], writes.astype(jnp.int32), own, begins, evidence)
    finish = jnp.where(writes & jnp.any(token[:, None] == state.requests.stop_ids, axis=1), STOP, state.finish)
    units = replace(_units(state), closed=_units(state).closed & ~rows)
    return replace(state, finish=jnp.where(ended, EOS, finish), units=units)


def _put(
    state: DecodingState,
    tokens: Int[Array, "B W"],
    counts: Int[Array, "B"],
    source: Int[Array, "B"],
    begins: Bool[Array, "B"],
    evidence: Float[Array, "B E"],
) -> DecodingState:
    """Append tokens of one unit to some sequences: what is known of the unit stands at each of them.

    Its evidence stands at the first one.
    """
    places = jnp.arange(tokens.shape[1])
    where = state.lengths[:, None] + places
    where = jnp.where(places < counts[:, None], where, state.tokens.shape[1])  # at the end: nowhere
    rows, units = jnp.arange(tokens.shape[0])[:, None], _units(state)

    def put(array: Array, values: Array) -> Array:
        return array.at[rows, where].set(jnp.broadcast_to(values, where.shape), mode="drop")

    lengths, observed = state.lengths + counts, state.evidence
    if observed is not None:
        each = jnp.where((places == 0)[:, None], evidence[:, None], jnp.nan)
        observed = observed.at[rows, where].set(jnp.broadcast_to(each, (*where.shape, each.shape[2])), mode="drop")
    return replace(
        state,
        tokens=put(state.tokens, tokens),
        lengths=lengths,
        finish=jnp.where((counts > 0) & (lengths >= state.requests.limits), LENGTH, state.finish),
        sources=put(state.sources, source[:, None]),
        p_defer=put(state.p_defer, units.p_defer[:, None]),
        threshold=put(state.threshold, units.threshold[:, None]),
        evidence=observed,
        units=replace(units, starts=put(units.starts, begins[:, None] & (places == 0))),
    )


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def accept(config: LoopConfig, state: DecodingState, answers: Answers) -> DecodingState:
    """Append what experts have written; where they wrote nothing, the base's own choice."""
    units, served, size = _units(state), answers.served, state.tokens.shape[1]
    source, choice, slots = units.expert, units.choice, jnp.arange(state.lengths.shape[0])
    calls = state.calls.at[slots, jnp.where(served & answers.asked, state.lengths, size)].add(1, mode="drop")
    by_expert = served & (answers.counts > 0)
    falls_back = served & ~by_expert & (answers.finish == UNFINISHED)
    counts = jnp.where(by_expert, answers.counts, 0)
    units = replace(units, expert=jnp.where(served, 0, units.expert), closed=units.closed | by_expert)
    agrees = answers.tokens[:, 0] == choice
    evidence = evidence_of(units.p_defer, source, units.base, agrees, source == 0, answers.evidence)
    state = _put(replace(state, calls=calls, units=units), answers.tokens, counts, source, by_expert, evidence)
    ends = served & (answers.finish != UNFINISHED)
    state = replace(state, finish=jnp.where(ends, answers.finish, state.finish))
    return _write(config, state, choice, falls_back, falls_back)
