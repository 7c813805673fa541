"""The collaborative decoding loop: one jitted `lax.scan` over turns that holds all models (docs/decoding.md).

In a turn the base runs decode steps until an expert pass is due: until enough calls are waiting (`ExpertBatching`), or
the budget of steps is spent. A sequence with a pending call waits, or goes on with drafts
(`colm_jax.decoding.speculation`). Then, inside `lax.cond`, each expert that is called reads, in one pass, the unread
tokens of all sequences that call it, and their tokens are decided, in order, as far as the drafts were right.

A forward pass never changes a cache: the new rows are stored after the cond, so that no branch returns a cache and none
is copied. A call that needs more unread tokens than a pass inside the loop can read (`out_of_reach`) stays pending
until the host has prefilled the expert between two scans (`colm_jax.decoding.slots`).
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.correction import judge, propose, source_of
from colm_jax.decoding.evidence import evidence_of
from colm_jax.decoding.position import is_deferred, next_token, position_keys, position_threshold, written
from colm_jax.decoding.speculation import run_ahead
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
    needed,
    out_of_reach,
    unread,
)
from colm_jax.decoding.strategies import CHOOSE, Step, called
from colm_jax.models.cache import BLOCK, KVRows, no_rows
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import p_defer
from colm_jax.models.ragged import Ragged
from colm_jax.models.sampling import sample
from colm_jax.models.uncertainty import of_choice
from colm_jax.settings.generation import ExpertBatching


@partial(jax.jit, static_argnames=("graphs", "config"), donate_argnames="state")
def run_turns(
    graphs: Graphs, config: LoopConfig, models: Models, state: DecodingState, steps: Int[Array, ""]
) -> DecodingState:
    """Run `config.turns` turns, and at most `steps` base steps."""
    until = state.steps + steps

    def turn(state: DecodingState, _) -> tuple[DecodingState, None]:
        state = _base_steps(graphs, config, models, state, until)
        if not models.experts:
            return state, None
        serve = partial(_expert_passes, graphs, config, models)
        # A loop of one round or none: unlike a branch, which returns arrays of its own, it costs nothing when idle.
        due = _pass_due(config, state).astype(jnp.int32)
        return jax.lax.fori_loop(0, due, lambda _, state: serve(state), state), None

    return jax.lax.scan(turn, state, length=config.turns)[0]


def _runnable(config: LoopConfig, state: DecodingState) -> Bool[Array, "B"]:
    """Return the unfinished sequences that the base may continue: without a pending call, or with more drafts."""
    drafts, unfinished = state.drafts, state.finish == UNFINISHED
    if not config.speculation.on:
        return unfinished & (drafts.count == 0)
    more = ~drafts.ended & (drafts.count < config.speculation.drafts) & (drafts.guesses < state.agreement.ahead)
    for model in range(1, len(state.caches)):
        left = unread(state, model)  # a call within reach must stay there
        more &= (left + drafts.count <= config.reach) | (left > config.reach)
    return unfinished & ((drafts.count == 0) | more)


def _within_reach(config: LoopConfig, state: DecodingState) -> Bool[Array, "B"]:
    """Return the slots whose pending calls a pass inside the loop can serve; none for which an expert still reads."""
    waits = has_pending(state) & (state.finish == UNFINISHED)
    return waits & ~jnp.any(out_of_reach(state, config.reach), axis=1)


def _enough(batching: ExpertBatching, waiting: Bool[Array, "B"], age: Int[Array, "B"]) -> Bool[Array, ""]:
    """Return whether these waiting calls are many or old enough for an expert pass."""
    return (jnp.sum(waiting) >= batching.calls) | jnp.any(waiting & (age >= batching.steps))


def _pass_due(config: LoopConfig, state: DecodingState) -> Bool[Array, ""]:
    """Return whether an expert pass is due: enough calls are waiting, or no sequence can continue without one."""
    near, runnable = _within_reach(config, state), _runnable(config, state)
    return jnp.any(near) & (_enough(config.batching, near & ~runnable, state.drafts.age) | ~jnp.any(runnable))


def _base_steps(
    graphs: Graphs, config: LoopConfig, models: Models, state: DecodingState, until: Int[Array, ""]
) -> DecodingState:
    """Run decode steps of the base until an expert pass is due."""

    def continues(state: DecodingState) -> Bool[Array, ""]:
        near, age, runnable = _within_reach(config, state), state.drafts.age, _runnable(config, state)
        far = has_pending(state) & ~near & (state.finish == UNFINISHED)  # not those for which an expert still reads
        due = _enough(config.batching, near & ~runnable, age) | _enough(config.batching, far & ~runnable, age)
        return jnp.any(runnable) & (state.steps < until) & ~due

    return jax.lax.while_loop(continues, lambda state: _base_step(graphs, config, models, state), state)


def _base_step(graphs: Graphs, config: LoopConfig, models: Models, state: DecodingState) -> DecodingState:
    """Run one decode step: the base reads each runnable sequence's last token; it writes the next, or a draft of it."""
    runnable, caches, vocab_size = _runnable(config, state), state.caches, models.allowed.shape[0]
    batch, waits = runnable.shape[0], has_pending(state)
    base_logits = no_logits = jnp.zeros((batch, vocab_size), jnp.float32)
    gate_logits = jnp.zeros((batch, state.drafts.gate_logits.shape[2]), jnp.float32)
    if config.reads_base:
        base = nnx.merge(graphs.base, models.base)
        reads = runnable if config.strategy.reads_base else runnable & (state.agreement.ahead > 0)

        def read():
            hidden, rows = base(next_token(state.tokens, caches[0].lengths), caches[0])
            return hidden[:, 0], base.logits(hidden[:, 0], models.allowed), rows

        def idle():
            empty = jnp.zeros((batch, base.config.width), base.dtype)
            return empty, no_logits, no_rows(base.config, batch, 1, base.dtype)

        # Where the base writes, the predicate is always true here. The cond then only forces XLA to finish reading the
        # cache before the write below; without it, XLA copies what the last layer reads.
        hidden, base_logits, rows = jax.lax.cond(jnp.any(reads), read, idle)
        caches = (caches[0].write(rows, reads.astype(jnp.int32)), *caches[1:])
        if config.strategy.needs_gate and graphs.gate is not None:
            gate_logits = nnx.merge(graphs.gate, models.gate)(hidden, base_logits)
    deferred = is_deferred(config.strategy, state, gate_logits, state.drafts.count)
    experts = [called(config.strategy, gate_logits, deferred, m) for m in range(len(models.experts))]
    calls = jnp.stack(experts, axis=1) if experts else jnp.zeros((batch, 0), bool)
    decided = runnable & ~waits & ~jnp.any(calls, axis=1)
    state = replace(state, caches=caches, steps=state.steps + 1)
    state = _draft(config, state, base_logits, gate_logits, calls, runnable & ~decided)
    step = Step(base_logits, (no_logits,) * len(experts), gate_logits, deferred)
    return _kept(_write_tokens(config, state, step, None, decided)[0])


def _draft(
    config: LoopConfig,
    state: DecodingState,
    base_logits: Float[Array, "B V"],
    gate_logits: Float[Array, "B G"],
    calls: Bool[Array, "B M"],
    rows: Bool[Array, "B"],
) -> DecodingState:
    """Add a draft to some slots, the base's choice, which an expert pass will decide."""
    drafts, requests, end = state.drafts, state.requests, state.tokens.shape[1]
    place = state.lengths + drafts.count
    keys = position_keys(state, drafts.count)
    token = jax.lax.cond(
        jnp.any(rows), lambda: sample(base_logits, keys, requests.sampling, rows), lambda: jnp.zeros_like(place)
    )
    ended = jnp.isin(token, jnp.array(config.eos_ids, jnp.int32)) | (place + 1 >= requests.limits)
    ended |= jnp.any(token[:, None] == requests.stop_ids, axis=1)
    slots = jnp.arange(place.shape[0])
    known = of_choice(base_logits, token) if config.observes else drafts.evidence[:, 0]
    state = replace(
        state,
        tokens=state.tokens.at[slots, jnp.where(rows, place, end)].set(token, mode="drop"),
        drafts=drafts.append(rows, calls, base_logits, gate_logits, known, ended),
    )
    waiting = has_pending(state) & ~_runnable(config, state)
    return replace(state, drafts=replace(state.drafts, age=jnp.where(waiting, drafts.age + 1, 0)))


def _expert_passes(graphs: Graphs, config: LoopConfig, models: Models, state: DecodingState) -> DecodingState:
    """Run a pass of each expert that is called, and decide the tokens for which all calls are answered."""
    near, room = _within_reach(config, state), config.sizes[-1].tokens
    reads = jnp.where(near[:, None], needed(state), 0)
    # A slot is served by all experts that it calls or by none, so that no answer is kept from one pass to the next.
    fits = [_shares(reads[:, m], jnp.int32(room)) == reads[:, m] for m in range(reads.shape[1])]
    served = near & jnp.all(jnp.stack(fits, axis=1), axis=1)
    answers, caches, passes = [], list(state.caches), state.passes
    for m, (graph, weights) in enumerate(zip(graphs.experts, models.experts)):
        decoder = nnx.merge(graph, weights)
        read = reads[:, m]
        logits, rows, ragged = _expert_pass(config, decoder, models.allowed, state, m, read, served)
        caches[m + 1] = caches[m + 1].write_line(rows, ragged)
        answers.append(logits)
        passes = passes.at[m].add(jnp.any(read > 0).astype(jnp.int32))
    return _decide(config, replace(state, caches=tuple(caches), passes=passes), tuple(answers), served)


def _expert_pass(
    config: LoopConfig,
    decoder: Decoder,
    allowed: Bool[Array, "V"],
    state: DecodingState,
    expert: int,
    reads: Int[Array, "B"],
    served: Bool[Array, "B"],
) -> tuple[Float[Array, "B guesses V"], KVRows, Ragged]:
    """Run one pass of an expert, if it is called, in the smallest size that holds the callers' unread tokens.

    Callers that are not served, for want of room, are read up to their first undecided token at most. Room that is left
    goes to sequences that do not call the expert but are partly in its cache: their tokens cost nothing extra here and
    need not be read later. Their last token is left for the call that needs the logits after it.

    Returns:
      Logits of the tokens for which each slot calls the expert, in order; the rows to store, and where they belong.
    """
    cache, largest, most = state.caches[expert + 1], config.sizes[-1], config.speculation.guesses
    settled = jnp.maximum(unread(state, expert + 1) - 1, 0)
    room = jnp.array([size.tokens for size in config.sizes])
    chunks = jnp.array([size.chunk for size in config.sizes])
    fits = (jnp.sum(reads) <= room) & (jnp.max(reads) <= chunks)
    which = jnp.where(jnp.any(fits), jnp.argmax(fits), len(config.sizes) - 1)
    shares = _shares(reads, room[which])
    counts = jnp.where(served, shares, jnp.minimum(shares, settled))
    others = jnp.where((reads == 0) & (state.finish == UNFINISHED) & (cache.lengths > 0), settled, 0)
    others = jnp.where(settled <= chunks[which], others, 0)
    counts += jnp.where(jnp.any(reads > 0), _shares(others, room[which] - jnp.sum(counts)), 0)
    line = largest.tokens + BLOCK
    calls = state.drafts.calls[:, :, expert]
    place = state.lengths[:, None] + _numbers(calls, most) - 1 - cache.lengths[:, None]  # of the tokens before them

    def read(size: PassSize):
        ragged = Ragged.of(counts, size.tokens, size.chunk)
        last = state.tokens.shape[1] - 1
        tokens = state.tokens[ragged.text, jnp.minimum(cache.lengths[ragged.text] + ragged.offset, last)]
        hidden, rows = decoder(tokens[None], cache, ragged=ragged)
        wanted = ragged.at(hidden, place)

        def first() -> Float[Array, "B guesses V"]:
            one = decoder.logits(wanted[:, 0], allowed)[:, None]
            return jnp.pad(one, ((0, 0), (0, most - 1), (0, 0)))

        logits = (
            first()
            if most == 1
            else jax.lax.cond(
                jnp.any(jnp.sum(calls & served[:, None], axis=1) > 1), lambda: decoder.logits(wanted, allowed), first
            )
        )
        return logits, jax.tree.map(partial(_lengthened, size=line), rows)

    def idle():
        nothing = no_rows(decoder.config, 1, line, decoder.dtype)
        return jnp.zeros((counts.shape[0], most, allowed.shape[0]), jnp.float32), nothing

    branches = [partial(read, size) for size in config.sizes]
    logits, rows = jax.lax.cond(jnp.any(reads > 0), lambda: jax.lax.switch(which, branches), idle)
    return logits, rows, Ragged.of(counts, largest.tokens, largest.chunk)


def _numbers(calls: Bool[Array, "B N"], most: int) -> Int[Array, "B guesses"]:
    """Return the numbers of the first `most` drafts of each slot that call an expert; 0 where there are fewer."""
    order = jnp.cumsum(calls, axis=1)
    which = calls[:, None] & (order[:, None] == jnp.arange(1, most + 1)[:, None])  # [B, guesses, N]
    return jnp.argmax(which, axis=2).astype(jnp.int32)


def _decide(
    config: LoopConfig, state: DecodingState, answers: tuple[Float[Array, "B guesses V"], ...], served: Bool[Array, "B"]
) -> DecodingState:
    """Decide the undecided tokens of the slots that were served, up to the first that differs from its draft."""
    slots, end = jnp.arange(served.shape[0]), state.tokens.shape[1] - 1
    order = jnp.cumsum(state.drafts.calls, axis=1) - 1  # [B, N, M]: which of each expert's answers is a token's

    def decide(carry: tuple[DecodingState, Int[Array, ""], Bool[Array, "B"]]):
        state, number, live = carry
        draft, place = state.tokens[slots, jnp.minimum(state.lengths, end)], state.lengths
        calls, base_logits, gate_logits = state.drafts.at(number, draft, answers[0].shape[2])
        deferred = is_deferred(config.strategy, state, gate_logits, 0)
        found = [answer[slots, order[slots, number, m]] for m, answer in enumerate(answers)]
        more = number + 1 < state.drafts.count
        step = Step(base_logits, tuple(found), gate_logits, deferred)
        known = jax.lax.dynamic_index_in_dim(state.drafts.evidence, number, axis=1, keepdims=False)
        state, token = _write_tokens(config, state, step, (draft, known), live)
        right = token == draft
        agreement = state.agreement.observed(live & jnp.any(calls, axis=1), right, more)
        # A token that retracts others, or ends the text, also changes what follows.
        live &= right & more & (state.lengths == place + 1) & (state.finish == UNFINISHED)
        return replace(state, agreement=agreement), number + 1, live

    state, _, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[2]), decide, (state, jnp.int32(0), served))
    if config.speculation.on:
        ahead = run_ahead(config.speculation, state.agreement, written(state))
        state = replace(
            state, agreement=replace(state.agreement, ahead=jnp.where(served, ahead, state.agreement.ahead))
        )
    return _kept(replace(state, drafts=state.drafts.without(served)))


def _kept(state: DecodingState) -> DecodingState:
    """Shorten each cache to what still holds: all but the last token of a sequence, for the base with its drafts."""
    ends = [state.lengths - 1 + state.drafts.count, *(state.lengths - 1 for _ in state.caches[1:])]
    caches = (replace(c, lengths=jnp.minimum(c.lengths, end)) for c, end in zip(state.caches, ends))
    return replace(state, caches=tuple(caches))


def _shares(needed: Int[Array, "B"], room: Int[Array, ""]) -> Int[Array, "B"]:
    """Return how much of what each slot needs it gets, in order, until the room is full."""
    before = jnp.cumsum(needed) - needed
    return jnp.clip(room - before, 0, needed)


def _lengthened(rows: Float[Array, "1 K N h"], size: int) -> Float[Array, "1 K W h"]:
    return jnp.pad(rows, ((0, 0), (0, 0), (0, size - rows.shape[2]), (0, 0)))


def _write_tokens(
    config: LoopConfig,
    state: DecodingState,
    step: Step,
    draft: tuple[Int[Array, "B"], Float[Array, "B _"]] | None,
    ready: Bool[Array, "B"],
) -> tuple[DecodingState, Int[Array, "B"]]:
    """Decide and write the next token of every slot that is ready, by the strategy; return the token as well.

    Args:
      config: what is compiled into the loop.
      state: the batch.
      step: the models' logits.
      draft: the base's own choice and, where it is kept, its evidence; None: no expert is called, and the base writes.
      ready: slots.
    """
    strategy, requests, end = config.strategy, state.requests, state.tokens.shape[1]
    gate_logits, deferred, place = step.gate_logits, step.deferred, state.lengths
    logits, source = CHOOSE[strategy.name](step)
    chosen_from = logits  # a token on trial is known to be chosen, which says nothing of its probability
    trials, correction, ahead = state.trials, config.correction, strategy.name == "lookahead"
    if trials is not None and correction is not None:
        proposal, trials = propose(correction, ahead, step, logits, source, trials, place, ready)
        logits = proposal.logits
    token = sample(logits, position_keys(state), requests.sampling, ready)
    if trials is not None and correction is not None:
        source = source_of(correction, proposal, token, trials, place)
    ended = ready & jnp.isin(token, jnp.array(config.eos_ids, jnp.int32))
    writes = ready & ~ended
    lengths = state.lengths + writes.astype(jnp.int32)
    finish = jnp.where(writes & (lengths >= requests.limits), LENGTH, state.finish)
    finish = jnp.where(writes & jnp.any(token[:, None] == requests.stop_ids, axis=1), STOP, finish)
    finish = jnp.where(ended, EOS, finish)
    rows = jnp.arange(place.shape[0])
    called_by = (called(strategy, gate_logits, deferred, m).astype(jnp.int32) for m in range(len(step.experts)))
    calls = sum(called_by, jnp.zeros_like(place))

    def put(array, value, where):
        return array.at[rows, jnp.where(where, place, end)].set(value, mode="drop")  # at the end: nowhere

    evidence = state.evidence
    if evidence is not None:
        choice, base = draft or (token, of_choice(step.base, token))
        writer = base if draft is None else of_choice(chosen_from, token)
        writer = writer[:, jnp.array([3, 0, 2])]
        alone = (source == 0) & ~deferred
        known = evidence_of(p_defer(gate_logits), source, base, token == choice, alone, writer)
        evidence = put(evidence, known, writes)
    state = replace(
        state,
        tokens=put(state.tokens, token, writes),
        lengths=lengths,
        finish=finish,
        sources=put(state.sources, source.astype(jnp.int32), writes),
        p_defer=put(state.p_defer, p_defer(gate_logits), writes),
        threshold=put(state.threshold, position_threshold(state), writes),
        calls=state.calls.at[rows, jnp.where(ready, place, end)].add(calls, mode="drop"),
        evidence=evidence,
        trials=trials,
    )
    if trials is None or correction is None:
        return state, token
    ends = ready & (finish != UNFINISHED)
    trials, back = judge(correction, ahead, proposal, trials, place, token, source, ready, ends)
    return _roll_back(replace(state, trials=trials), back), token


def _roll_back(state: DecodingState, back: Bool[Array, "B"]) -> DecodingState:
    """Roll sequences back to the place on trial, whose token is decided again and keeps the count of calls."""
    assert state.trials is not None
    place = state.trials.place
    later = back[:, None] & (jnp.arange(state.tokens.shape[1]) > place[:, None])
    spent = jnp.sum(jnp.where(later, state.calls, 0), axis=1)
    calls = jnp.where(later, 0, state.calls)
    calls = calls.at[jnp.arange(place.shape[0]), jnp.where(back, place, state.tokens.shape[1])].add(spent, mode="drop")

    return replace(
        state,
        lengths=jnp.where(back, place, state.lengths),
        finish=jnp.where(back, UNFINISHED, state.finish),
        calls=calls,
    )
