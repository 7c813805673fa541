"""The collaborative decoding loop: one jitted `lax.scan` over turns that holds all models (DESIGN section 4).

In a turn the base runs decode steps until an expert pass is due: until enough calls are pending (`ExpertBatching`), or
the budget of steps is spent. Then, inside `lax.cond`, each expert that is called reads, in one pass, the unread tokens
of all sequences that call it, and their next tokens are decided.

A forward pass never changes a cache: the new rows are stored after the cond, so that no branch returns a cache and none
is copied. A call with more unread tokens than a pass inside the loop can read (`out_of_reach`) stays pending until the
host has prefilled the expert between two scans (`colm_jax.decoding.slots`).
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.correction import judge, propose, source_of
from colm_jax.decoding.sampling import sample
from colm_jax.decoding.schedule import threshold_at
from colm_jax.decoding.state import (
    EOS,
    LENGTH,
    STOP,
    UNFINISHED,
    DecodingState,
    Graphs,
    LoopConfig,
    Models,
    PassSize,
    has_pending,
    out_of_reach,
    unread,
)
from colm_jax.decoding.strategies import CHOOSE, Step, called
from colm_jax.models.cache import BLOCK, KVCache, KVRows, no_rows
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import p_defer
from colm_jax.models.ragged import Ragged
from colm_jax.settings.generation import ExpertBatching


@partial(jax.jit, static_argnames=("graphs", "config"), donate_argnames="state")
def run_turns(
    graphs: Graphs, config: LoopConfig, models: Models, state: DecodingState, steps: Int[Array, ""]
) -> DecodingState:
    """Run `config.turns` turns, and at most `steps` base steps."""
    until = state.steps + steps

    def turn(state: DecodingState, _) -> tuple[DecodingState, None]:
        state = _base_steps(graphs, config, models, state, until)
        serve = partial(_expert_passes, graphs, config, models)
        # A loop of one round or none: unlike a branch, which returns arrays of its own, it costs nothing when idle.
        due = _pass_due(config, state).astype(jnp.int32)
        return jax.lax.fori_loop(0, due, lambda _, state: serve(state), state), None

    return jax.lax.scan(turn, state, length=config.turns)[0]


def _runnable(state: DecodingState) -> Bool[Array, "B"]:
    """Return the unfinished sequences without a pending call."""
    return (state.finish == UNFINISHED) & ~has_pending(state)


def _within_reach(config: LoopConfig, state: DecodingState) -> Bool[Array, "B"]:
    """Return the slots whose pending calls a pass inside the loop can serve."""
    return has_pending(state) & ~jnp.any(out_of_reach(state, config.reach), axis=1)


def _enough(batching: ExpertBatching, pending: Bool[Array, "B"], age: Int[Array, "B"]) -> Bool[Array, ""]:
    """Return whether these pending calls are many or old enough for an expert pass."""
    return (jnp.sum(pending) >= batching.calls) | jnp.any(pending & (age >= batching.steps))


def _pass_due(config: LoopConfig, state: DecodingState) -> Bool[Array, ""]:
    """Return whether an expert pass is due: enough calls are pending, or no sequence can continue without one."""
    near = _within_reach(config, state)
    return jnp.any(near) & (_enough(config.batching, near, state.pending.age) | ~jnp.any(_runnable(state)))


def _base_steps(
    graphs: Graphs, config: LoopConfig, models: Models, state: DecodingState, until: Int[Array, ""]
) -> DecodingState:
    """Run decode steps of the base until an expert pass is due."""

    def continues(state: DecodingState) -> Bool[Array, ""]:
        near, age = _within_reach(config, state), state.pending.age
        due = _enough(config.batching, near, age) | _enough(config.batching, has_pending(state) & ~near, age)
        return jnp.any(_runnable(state)) & (state.steps < until) & ~due

    return jax.lax.while_loop(continues, lambda state: _base_step(graphs, config, models, state), state)


def _base_step(graphs: Graphs, config: LoopConfig, models: Models, state: DecodingState) -> DecodingState:
    """Run one decode step: the base reads each runnable sequence's last token; it writes the next, or calls experts."""
    runnable, pending = _runnable(state), state.pending
    caches, base_logits, gate_logits = state.caches, pending.base, pending.gate_logits
    if config.strategy.reads_base:
        base = nnx.merge(graphs.base, models.base)

        def read():
            return base(_window(state.tokens, caches[0].lengths, 1), caches[0])

        def idle():
            empty = jnp.zeros((runnable.shape[0], 1, base.config.width), base.dtype)
            return empty, no_rows(base.config, runnable.shape[0], 1, base.dtype)

        # The predicate is always true here. The cond only forces XLA to finish reading the cache before the write
        # below; without it, XLA copies what the last layer reads.
        hidden, rows = jax.lax.cond(jnp.any(runnable), read, idle)
        caches = (caches[0].write(rows, runnable.astype(jnp.int32)), *caches[1:])
        base_logits = jnp.where(runnable[:, None], base.logits(hidden[:, 0], models.allowed), base_logits)
        if config.strategy.needs_gate and graphs.gate is not None:
            gate = nnx.merge(graphs.gate, models.gate)
            gate_logits = jnp.where(runnable[:, None], gate(hidden[:, 0]), gate_logits)
    pending = replace(pending, base=base_logits, gate_logits=gate_logits)
    state = replace(state, caches=caches, pending=pending, steps=state.steps + 1)
    deferred = _deferred(config, state)
    experts = pending.experts
    for m in range(len(models.experts)):
        calls = runnable & called(config.strategy, gate_logits, deferred, m)
        experts = experts.at[:, m].set(experts[:, m] | calls)
    age = jnp.where(has_pending(state), pending.age + 1, 0)
    state = replace(state, pending=replace(pending, experts=experts, age=age))
    return _write_tokens(config, state, runnable & ~has_pending(state))


def _expert_passes(graphs: Graphs, config: LoopConfig, models: Models, state: DecodingState) -> DecodingState:
    """Run a pass of each expert that is called, and write the tokens whose calls are all served."""
    before, near = has_pending(state), _within_reach(config, state)
    experts, answers, caches = state.pending.experts, list(state.pending.answers), list(state.caches)
    passes = state.passes
    for m, (graph, weights) in enumerate(zip(graphs.experts, models.experts)):
        decoder = nnx.merge(graph, weights)
        calls = near & experts[:, m]
        logits, rows, ragged, served = _expert_pass(config, decoder, models.allowed, state, m, calls)
        caches[m + 1] = caches[m + 1].write_line(rows, ragged)
        answers[m] = jnp.where(served[:, None], logits, answers[m])
        experts = experts.at[:, m].set(experts[:, m] & ~served)
        passes = passes.at[m].add(jnp.any(calls).astype(jnp.int32))
    pending = replace(state.pending, experts=experts, answers=tuple(answers))
    state = replace(state, pending=pending, caches=tuple(caches), passes=passes)
    return _write_tokens(config, state, before & ~has_pending(state))


def _expert_pass(
    config: LoopConfig,
    decoder: Decoder,
    allowed: Bool[Array, "V"],
    state: DecodingState,
    expert: int,
    calls: Bool[Array, "B"],
) -> tuple[Float[Array, "B V"], KVRows, Ragged, Bool[Array, "B"]]:
    """Run one pass of an expert, if it is called, in the smallest size that holds the callers' unread tokens.

    Room that is left goes to sequences that do not call it but are partly in its cache: their tokens cost nothing extra
    here and need not be read later. Their last token is left for the call that needs the logits after it.

    Returns:
      Logits of each next token, the rows to store, where they belong, and which slots' calls are served.
    """
    cache, largest = state.caches[expert + 1], config.sizes[-1]
    left = unread(state, expert + 1)
    needed = jnp.where(calls, left, 0)
    room = jnp.array([size.tokens for size in config.sizes])
    chunks = jnp.array([size.chunk for size in config.sizes])
    fits = (jnp.sum(needed) <= room) & (jnp.max(needed) <= chunks)
    which = jnp.where(jnp.any(fits), jnp.argmax(fits), len(config.sizes) - 1)
    counts = _shares(needed, room[which])
    others = jnp.where(~calls & (state.finish == UNFINISHED) & (cache.lengths > 0), jnp.maximum(left - 1, 0), 0)
    others = jnp.where(left - 1 <= chunks[which], others, 0)
    counts += jnp.where(jnp.any(calls), _shares(others, room[which] - jnp.sum(counts)), 0)
    line = largest.tokens + BLOCK

    def read(size: PassSize):
        ragged = Ragged.of(counts, size.tokens, size.chunk)
        last = state.tokens.shape[1] - 1
        tokens = state.tokens[ragged.text, jnp.minimum(cache.lengths[ragged.text] + ragged.offset, last)]
        hidden, rows = decoder(tokens[None], cache, ragged=ragged)
        return decoder.logits(ragged.last(hidden), allowed), jax.tree.map(partial(_lengthened, size=line), rows)

    def idle():
        nothing = no_rows(decoder.config, 1, line, decoder.dtype)
        return jnp.zeros((counts.shape[0], allowed.shape[0]), jnp.float32), nothing

    branches = [partial(read, size) for size in config.sizes]
    logits, rows = jax.lax.cond(jnp.any(calls), lambda: jax.lax.switch(which, branches), idle)
    return logits, rows, Ragged.of(counts, largest.tokens, largest.chunk), calls & (counts == left)


def _shares(needed: Int[Array, "B"], room: Int[Array, ""]) -> Int[Array, "B"]:
    """Return how much of what each slot needs it gets, in order, until the room is full."""
    before = jnp.cumsum(needed) - needed
    return jnp.clip(room - before, 0, needed)


def _lengthened(rows: Float[Array, "1 K N h"], size: int) -> Float[Array, "1 K W h"]:
    return jnp.pad(rows, ((0, 0), (0, 0), (0, size - rows.shape[2]), (0, 0)))


def _window(tokens: Int[Array, "B S"], start: Int[Array, "B"], size: int) -> Int[Array, "B C"]:
    positions = jnp.minimum(start[:, None] + jnp.arange(size), tokens.shape[1] - 1)
    return jnp.take_along_axis(tokens, positions, axis=1)


def _written(state: DecodingState) -> Int[Array, "B"]:
    """Return the number of tokens after each prompt."""
    return state.lengths - state.requests.prompt_lengths


def _keys(state: DecodingState) -> Array:
    """Return the PRNG key of each slot's next token, [B]."""
    return jax.vmap(jax.random.fold_in)(state.requests.keys, _written(state))


def _threshold(state: DecodingState) -> Float[Array, "B"]:
    requests = state.requests
    return threshold_at(_written(state), requests.thresholds, requests.schedules, requests.warmups)


def _deferred(config: LoopConfig, state: DecodingState) -> Bool[Array, "B"]:
    """Return whether each slot's next token is deferred."""
    if config.strategy.name == "random":
        coins = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(_keys(state))
        return coins < state.requests.rates
    return p_defer(state.pending.gate_logits) > _threshold(state)


def _write_tokens(config: LoopConfig, state: DecodingState, ready: Bool[Array, "B"]) -> DecodingState:
    """Decide and write the next token of every slot that is ready, by the strategy."""
    strategy, pending, requests, end = config.strategy, state.pending, state.requests, state.tokens.shape[1]
    deferred, place = _deferred(config, state), state.lengths
    step = Step(pending.base, pending.answers, pending.gate_logits, deferred)
    logits, source = CHOOSE[strategy.name](step)
    trials, correction, ahead = state.trials, config.correction, strategy.name == "lookahead"
    if trials is not None and correction is not None:
        proposal, trials = propose(correction, ahead, step, logits, source, trials, place, ready)
        logits = proposal.logits
    token = sample(logits, _keys(state), requests.sampling, ready)
    if trials is not None and correction is not None:
        source = source_of(correction, proposal, token, trials, place)
    ended = ready & jnp.isin(token, jnp.array(config.eos_ids, jnp.int32))
    writes = ready & ~ended
    lengths = state.lengths + writes.astype(jnp.int32)
    finish = jnp.where(writes & (lengths >= requests.limits), LENGTH, state.finish)
    finish = jnp.where(writes & jnp.any(token[:, None] == requests.stop_ids, axis=1), STOP, finish)
    finish = jnp.where(ended, EOS, finish)
    rows = jnp.arange(place.shape[0])
    experts = range(len(pending.answers))
    called_by = (called(strategy, pending.gate_logits, deferred, m).astype(jnp.int32) for m in experts)
    calls = sum(called_by, jnp.zeros_like(place))

    def put(array, value, where):
        return array.at[rows, jnp.where(where, place, end)].set(value, mode="drop")  # at the end: nowhere

    state = replace(
        state,
        tokens=put(state.tokens, token, writes),
        lengths=lengths,
        finish=finish,
        sources=put(state.sources, source.astype(jnp.int32), writes),
        p_defer=put(state.p_defer, p_defer(pending.gate_logits), writes),
        threshold=put(state.threshold, _threshold(state), writes),
        calls=state.calls.at[rows, jnp.where(ready, place, end)].add(calls, mode="drop"),
        trials=trials,
    )
    if trials is None or correction is None:
        return state
    ends = ready & (finish != UNFINISHED)
    trials, back = judge(correction, ahead, proposal, trials, place, token, source, ready, ends)
    return _roll_back(replace(state, trials=trials), back)


def _roll_back(state: DecodingState, back: Bool[Array, "B"]) -> DecodingState:
    """Roll sequences back to the place on trial, whose token is decided again and keeps the count of calls."""
    assert state.trials is not None
    place = state.trials.place
    later = back[:, None] & (jnp.arange(state.tokens.shape[1]) > place[:, None])
    spent = jnp.sum(jnp.where(later, state.calls, 0), axis=1)
    calls = jnp.where(later, 0, state.calls)
    calls = calls.at[jnp.arange(place.shape[0]), jnp.where(back, place, state.tokens.shape[1])].add(spent, mode="drop")

    def shortened(cache: KVCache) -> KVCache:
        return replace(cache, lengths=jnp.where(back, jnp.minimum(cache.lengths, place - 1), cache.lengths))

    return replace(
        state,
        lengths=jnp.where(back, place, state.lengths),
        finish=jnp.where(back, UNFINISHED, state.finish),
        calls=calls,
        caches=tuple(map(shortened, state.caches)),
    )
