"""The collaborative decoding loop: one jitted `lax.scan` over turns that holds all models (DESIGN section 4).

In a turn the base writes token after token until experts are wanted: until enough texts wait for one (`Parking`), or
the budget of steps is spent. Then, inside `lax.cond`, each expert that is called reads in one pass all that it has not
read of the texts that wait, and their next tokens are decided.

Reading never changes a cache: the new rows are written behind the cond, so that no branch returns a cache and none is
copied. A text of which an expert has more to read than a pass inside the loop can (`distant`) waits for the host, which
lets the expert read between two scans (`colm_jax.decoding.slots`).
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.correction import judge, propose, writer_of
from colm_jax.decoding.sampling import take
from colm_jax.decoding.schedule import threshold_at
from colm_jax.decoding.state import (
    EOS,
    LENGTH,
    UNFINISHED,
    Graphs,
    LoopConfig,
    Models,
    PassSize,
    State,
    distant,
    unread,
    waiting,
)
from colm_jax.decoding.strategies import Step, called
from colm_jax.models.cache import BLOCK, KVCache, Rows, no_rows
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import p_defer
from colm_jax.models.ragged import Ragged


@partial(jax.jit, static_argnames=("graphs", "config"), donate_argnames="state")
def run_turns(graphs: Graphs, config: LoopConfig, models: Models, state: State, steps: Int[Array, ""]) -> State:
    """`config.turns` turns, and at most `steps` steps of the base."""
    until = state.steps + steps

    def turn(state: State, _) -> tuple[State, None]:
        state = _write(graphs, config, models, state, until)
        ask = partial(_ask, graphs, config, models)
        # A loop of one round or none: unlike a branch, which returns arrays of its own, it costs nothing when idle.
        return jax.lax.fori_loop(0, _wanted(config, state).astype(jnp.int32), lambda _, state: ask(state), state), None

    return jax.lax.scan(turn, state, length=config.turns)[0]


def _able(state: State) -> Bool[Array, "B"]:
    """Texts that can go on without an expert."""
    return (state.finish == UNFINISHED) & ~waiting(state)


def _near(config: LoopConfig, state: State) -> Bool[Array, "B"]:
    """Texts that wait for experts which can answer in this scan."""
    return waiting(state) & ~jnp.any(distant(state, config.reach), axis=1)


def _wanted(config: LoopConfig, state: State) -> Bool[Array, ""]:
    """Whether experts are to answer now: those that wait have waited enough, or nobody can go on without."""
    near = _near(config, state)
    return jnp.any(near) & (config.parking.over(near, state.asking.waited) | ~jnp.any(_able(state)))


def _write(graphs: Graphs, config: LoopConfig, models: Models, state: State, until) -> State:
    """The base writes on, step by step, until experts are wanted."""

    def goes_on(state: State) -> Bool[Array, ""]:
        near, waited = _near(config, state), state.asking.waited
        wanted = config.parking.over(near, waited) | config.parking.over(waiting(state) & ~near, waited)
        return jnp.any(_able(state)) & (state.steps < until) & ~wanted

    return jax.lax.while_loop(goes_on, lambda state: _step(graphs, config, models, state), state)


def _step(graphs: Graphs, config: LoopConfig, models: Models, state: State) -> State:
    """The base reads the last token of every text that does not wait; whoever needs no expert writes."""
    able, asking = _able(state), state.asking
    caches, base_logits, gate_logits = state.caches, asking.base, asking.gate
    if config.strategy.reads_base:
        base = nnx.merge(graphs.base, models.base)

        def read():
            return base(_window(state.tokens, caches[0].lengths, 1), caches[0])

        def rest():
            empty = jnp.zeros((able.shape[0], 1, base.config.width), base.dtype)
            return empty, no_rows(base.config, able.shape[0], 1, base.dtype)

        # Always true where a step is taken. But only so does XLA read before it writes: else it copies what the last
        # layer reads.
        hidden, rows = jax.lax.cond(jnp.any(able), read, rest)
        caches = (caches[0].write(rows, able.astype(jnp.int32)), *caches[1:])
        base_logits = jnp.where(able[:, None], base.logits(hidden[:, 0], models.allowed), base_logits)
        if config.strategy.needs_gate and graphs.gate is not None:
            gate_logits = jnp.where(able[:, None], nnx.merge(graphs.gate, models.gate)(hidden[:, 0]), gate_logits)
    asking = replace(asking, base=base_logits, gate=gate_logits)
    state = replace(state, caches=caches, asking=asking, steps=state.steps + 1)
    deferred = _deferred(config, state)
    asked = [able & called(config.strategy, gate_logits, deferred, m) for m in range(len(models.experts))]
    experts = asking.experts
    for m, asks in enumerate(asked):
        experts = experts.at[:, m].set(experts[:, m] | asks)
    waited = jnp.where(waiting(state), asking.waited + 1, 0)
    state = replace(state, asking=replace(asking, experts=experts, waited=waited))
    return _decide(config, state, able & ~waiting(state))


def _ask(graphs: Graphs, config: LoopConfig, models: Models, state: State) -> State:
    """Experts read for those that wait; whoever has all answers writes."""
    before, near = waiting(state), _near(config, state)
    experts, answers, caches = state.asking.experts, list(state.asking.answers), list(state.caches)
    passes = state.passes
    for m, (graph, weights) in enumerate(zip(graphs.experts, models.experts)):
        decoder = nnx.merge(graph, weights)
        asks = near & experts[:, m]
        logits, rows, ragged, heard = _listen(config, decoder, models.allowed, state, m, asks)
        caches[m + 1] = caches[m + 1].write_line(rows, ragged)
        answers[m] = jnp.where(heard[:, None], logits, answers[m])
        experts = experts.at[:, m].set(experts[:, m] & ~heard)
        passes = passes.at[m].add(jnp.any(asks).astype(jnp.int32))
    asking = replace(state.asking, experts=experts, answers=tuple(answers))
    state = replace(state, asking=asking, caches=tuple(caches), passes=passes)
    return _decide(config, state, before & ~waiting(state))


def _listen(
    config: LoopConfig, decoder: Decoder, allowed: Bool[Array, "V"], state: State, expert: int, asks: Bool[Array, "B"]
) -> tuple[Float[Array, "B V"], Rows, Ragged, Bool[Array, "B"]]:
    """One pass of an expert, if some text asks: in the smallest size that holds what it has to read.

    Room that is left is given to texts that do not ask and of which it has read something before: reading is free there
    and need not be done later. Their last token is left for the call that wants to know what follows it.

    Returns:
      Logits behind each text, the rows to store, where they belong, and for which texts the logits count.
    """
    cache, largest = state.caches[expert + 1], config.sizes[-1]
    left = unread(state, expert + 1)
    wanted = jnp.where(asks, left, 0)
    room = jnp.array([size.tokens for size in config.sizes])
    chunks = jnp.array([size.chunk for size in config.sizes])
    fits = (jnp.sum(wanted) <= room) & (jnp.max(wanted) <= chunks)
    which = jnp.where(jnp.any(fits), jnp.argmax(fits), len(config.sizes) - 1)
    counts = _shares(wanted, room[which])
    others = jnp.where(~asks & (state.finish == UNFINISHED) & (cache.lengths > 0), jnp.maximum(left - 1, 0), 0)
    others = jnp.where(left - 1 <= chunks[which], others, 0)
    counts += jnp.where(jnp.any(asks), _shares(others, room[which] - jnp.sum(counts)), 0)
    line = largest.tokens + BLOCK

    def read(size: PassSize):
        ragged = Ragged.of(counts, size.tokens, size.chunk)
        tokens = state.tokens[ragged.text, jnp.minimum(cache.lengths[ragged.text] + ragged.offset, _last(state))]
        hidden, rows = decoder(tokens[None], cache, ragged=ragged)
        return decoder.logits(ragged.last(hidden), allowed), jax.tree.map(partial(_lengthened, size=line), rows)

    def rest():
        nothing = no_rows(decoder.config, 1, line, decoder.dtype)
        return jnp.zeros((counts.shape[0], allowed.shape[0]), jnp.float32), nothing

    branches = [partial(read, size) for size in config.sizes]
    logits, rows = jax.lax.cond(jnp.any(asks), lambda: jax.lax.switch(which, branches), rest)
    return logits, rows, Ragged.of(counts, largest.tokens, largest.chunk), asks & (counts == left)


def _shares(wanted: Int[Array, "B"], room: Int[Array, ""]) -> Int[Array, "B"]:
    """How much of what each text wants it gets, in order, until the room is full."""
    before = jnp.cumsum(wanted) - wanted
    return jnp.clip(room - before, 0, wanted)


def _lengthened(rows: Float[Array, "1 K N h"], size: int) -> Float[Array, "1 K W h"]:
    return jnp.pad(rows, ((0, 0), (0, 0), (0, size - rows.shape[2]), (0, 0)))


def _last(state: State) -> int:
    return state.tokens.shape[1] - 1


def _window(tokens: Int[Array, "B S"], start: Int[Array, "B"], size: int) -> Int[Array, "B C"]:
    positions = jnp.minimum(start[:, None] + jnp.arange(size), tokens.shape[1] - 1)
    return jnp.take_along_axis(tokens, positions, axis=1)


def _written(state: State) -> Int[Array, "B"]:
    return state.lengths - state.requests.prompt_lengths


def _keys(state: State) -> Array:
    return jax.vmap(jax.random.fold_in)(state.requests.keys, _written(state))


def _threshold(state: State) -> Float[Array, "B"]:
    requests = state.requests
    return threshold_at(_written(state), requests.thresholds, requests.schedules, requests.warmups)


def _deferred(config: LoopConfig, state: State) -> Bool[Array, "B"]:
    """Whether each text's next token is deferred."""
    if config.strategy.name == "random":
        coins = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(_keys(state))
        return coins < state.requests.rates
    return p_defer(state.asking.gate) > _threshold(state)


def _decide(config: LoopConfig, state: State, ready: Bool[Array, "B"]) -> State:
    """Takes the next token of every text that is ready, by the strategy."""
    strategy, asking, end = config.strategy, state.asking, state.tokens.shape[1]
    deferred, keys, place = _deferred(config, state), _keys(state), state.lengths
    step = Step(asking.base, asking.answers, asking.gate, deferred)
    weights, source = strategy.choose(step)
    watch, correction, ahead = state.watch, config.correction, strategy.name == "lookahead"
    if watch is not None and correction is not None:
        proposal, watch = propose(correction, ahead, step, weights, source, watch, place, ready)
        weights = proposal.weights
    token = take(weights, keys, config.sampling)
    if watch is not None and correction is not None:
        source = writer_of(correction, proposal, token, watch, place)
    ended = ready & jnp.isin(token, jnp.array(config.eos_ids, jnp.int32))
    writes = ready & ~ended
    lengths = state.lengths + writes
    finish = jnp.where(ended, EOS, jnp.where(writes & (lengths >= state.requests.limits), LENGTH, state.finish))
    rows = jnp.arange(place.shape[0])
    experts = range(len(asking.answers))
    calls = sum((called(strategy, asking.gate, deferred, m).astype(jnp.int32) for m in experts), jnp.zeros_like(place))

    def put(array, value, where):
        return array.at[rows, jnp.where(where, place, end)].set(value, mode="drop")  # at the end: nowhere

    state = replace(
        state,
        tokens=put(state.tokens, token, writes),
        lengths=lengths,
        finish=finish,
        sources=put(state.sources, source.astype(jnp.int32), writes),
        p_defer=put(state.p_defer, p_defer(asking.gate), writes),
        threshold=put(state.threshold, _threshold(state), writes),
        calls=state.calls.at[rows, jnp.where(ready, place, end)].add(calls, mode="drop"),
        watch=watch,
    )
    if watch is None or correction is None:
        return state
    ends = ready & (finish != UNFINISHED)
    watch, back = judge(correction, ahead, proposal, watch, place, token, source, ready, ends)
    return _go_back(replace(state, watch=watch), back)


def _go_back(state: State, back: Bool[Array, "B"]) -> State:
    """Puts texts back to the place on trial: their next token is to be written anew."""
    assert state.watch is not None
    place = state.watch.place
    behind = back[:, None] & (jnp.arange(state.tokens.shape[1]) > place[:, None])
    spent = jnp.sum(jnp.where(behind, state.calls, 0), axis=1)
    calls = jnp.where(behind, 0, state.calls)
    calls = calls.at[jnp.arange(place.shape[0]), jnp.where(back, place, state.tokens.shape[1])].add(spent, mode="drop")

    def forget(cache: KVCache) -> KVCache:
        return replace(cache, lengths=jnp.where(back, jnp.minimum(cache.lengths, place - 1), cache.lengths))

    return replace(
        state,
        lengths=jnp.where(back, place, state.lengths),
        finish=jnp.where(back, UNFINISHED, state.finish),
        calls=calls,
        caches=tuple(map(forget, state.caches)),
    )
