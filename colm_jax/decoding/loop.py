"""The collaborative decoding loop: one jitted `lax.scan` over steps that holds all models (DESIGN section 4).

In a step the base reads each sequence's last token and the gate decides. Inside `lax.cond`, only when some sequence
calls it, an expert reads in one multi-token pass every token it has not seen. Reading never changes a cache; the new
rows are written after the cond, so that no branch returns a cache and none is copied.

A sequence whose expert is further behind than a chunk is *parked*: it writes nothing more in this scan, and the engine
lets the expert catch up between two scans.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.sampling import Sampling, take
from colm_jax.decoding.schedule import threshold_at
from colm_jax.decoding.strategies import Step, Strategy, called
from colm_jax.models.cache import KVCache, no_rows
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import p_defer

CHUNK = 16  # tokens an expert reads in one pass inside the loop

UNFINISHED, EOS, LENGTH = 0, 1, 2  # why a sequence stopped


@dataclass(frozen=True)
class LoopConfig:
    """What is compiled into the loop."""

    strategy: Strategy
    sampling: Sampling
    schedule: str
    warmup: int  # tokens over which the threshold warms up
    eos_ids: tuple[int, ...]
    steps: int  # of one scan


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Models:
    """The team's weights and what goes with them."""

    base: nnx.State
    experts: tuple[nnx.State, ...]
    gate: nnx.State | None
    allowed: Bool[Array, "V"]  # the shared vocabulary


@dataclass(frozen=True)
class Graphs:
    """The static halves of the modules in `Models`."""

    base: nnx.GraphDef
    experts: tuple[nnx.GraphDef, ...]
    gate: nnx.GraphDef | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Requests:
    """What does not change while a batch decodes."""

    prompt_lengths: Int[Array, "B"]
    limits: Int[Array, "B"]  # text length at which a sequence ends
    thresholds: Float[Array, "B"]
    rates: Float[Array, "B"]  # of strategy `random`
    keys: Array  # [B] PRNG keys


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A batch in the middle of decoding. Entry t of a [B, S] array is about the token at position t of the text."""

    tokens: Int[Array, "B S"]  # prompt, then what was written
    lengths: Int[Array, "B"]  # text so far
    finish: Int[Array, "B"]  # UNFINISHED, EOS or LENGTH
    waits: Bool[Array, "B M"]  # parked until these experts have caught up
    sources: Int[Array, "B S"]
    p_defer: Float[Array, "B S"]
    threshold: Float[Array, "B S"]
    calls: Int[Array, "B S"]  # experts called to decide this token (an end of text, which is not written, included)
    expert_passes: Int[Array, "M"]  # passes of each expert over the batch
    base_cache: KVCache
    expert_caches: tuple[KVCache, ...]


def last_hidden(hidden: Float[Array, "B T D"], count: Int[Array, "B"]) -> Float[Array, "B D"]:
    """The state at the last of `count` valid positions."""
    return jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]


def unread(state: State, expert: int) -> Int[Array, "B"]:
    """How many tokens of each text an expert has not read."""
    return state.lengths - state.expert_caches[expert].lengths


def _window(tokens: Int[Array, "B S"], start: Int[Array, "B"], size: int) -> Int[Array, "B C"]:
    positions = jnp.minimum(start[:, None] + jnp.arange(size), tokens.shape[1] - 1)
    return jnp.take_along_axis(tokens, positions, axis=1)


def expert_pass(decoder: Decoder, state: State, expert: int, asks: Bool[Array, "B"], size: int, allowed):
    """One pass of an expert over the next tokens it has not read, for the sequences that ask.

    Returns:
      Logits behind the last token read [B, V], the rows to write, and how many tokens each sequence read.
    """
    cache = state.expert_caches[expert]
    count = jnp.where(asks, jnp.minimum(unread(state, expert), size), 0)
    hidden, rows = decoder(_window(state.tokens, cache.lengths, size), cache)
    return decoder.logits(last_hidden(hidden, count), allowed), rows, count


def _step(graphs: Graphs, config: LoopConfig, models: Models, requests: Requests, state: State) -> State:
    strategy, batch, vocabulary = config.strategy, state.lengths.shape[0], models.allowed.shape[0]
    rows_of = jnp.arange(batch)
    active = (state.finish == UNFINISHED) & ~jnp.any(state.waits, axis=1)
    written = state.lengths - requests.prompt_lengths
    keys = jax.vmap(jax.random.fold_in)(requests.keys, written)

    # The base reads its last token.
    base = nnx.merge(graphs.base, models.base)
    base_cache, gate_logits = state.base_cache, jnp.zeros((batch, max(1, len(models.experts))), jnp.float32)
    base_logits = jnp.zeros((batch, vocabulary), jnp.float32)
    if strategy.reads_base:

        def read_base():
            hidden, rows = base(_window(state.tokens, base_cache.lengths, 1), base_cache)
            return hidden[:, 0], rows

        def skip_base():
            nothing = no_rows(base.config, batch, 1, base.dtype)
            return jnp.zeros((batch, base.config.width), base.dtype), nothing

        hidden, rows = jax.lax.cond(jnp.any(active), read_base, skip_base)
        base_cache = base_cache.write(rows, active.astype(jnp.int32))
        base_logits = base.logits(hidden, models.allowed)
        if strategy.needs_gate and graphs.gate is not None:
            gate_logits = nnx.merge(graphs.gate, models.gate)(hidden)

    # Who is called.
    eta = threshold_at(written, requests.thresholds, config.schedule, config.warmup)
    p = p_defer(gate_logits)
    if strategy.name == "random":
        coins = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
        deferred = coins < requests.rates
    else:
        deferred = p > eta

    # Experts that are called read what they have not seen; one further behind than a chunk parks its callers.
    expert_logits, caches, passes = [], [], []
    asked = [active & called(strategy, gate_logits, deferred, m) for m in range(len(models.experts))]
    waits, calls = state.waits, jnp.zeros(batch, jnp.int32)
    for m, asks in enumerate(asked):
        waits = waits.at[:, m].set(waits[:, m] | (asks & (unread(state, m) > CHUNK)))
    ready = active & ~jnp.any(waits, axis=1)
    for m in range(len(models.experts)):
        decoder, cache = nnx.merge(graphs.experts[m], models.experts[m]), state.expert_caches[m]
        asks = asked[m] & ready

        def call(decoder=decoder, m=m, ready=ready):
            return expert_pass(decoder, state, m, ready & (unread(state, m) <= CHUNK), CHUNK, models.allowed)

        def rest(decoder=decoder):
            nothing = no_rows(decoder.config, batch, CHUNK, decoder.dtype)
            return jnp.zeros((batch, models.allowed.shape[0]), jnp.float32), nothing, jnp.zeros(batch, jnp.int32)

        logits, rows, count = jax.lax.cond(jnp.any(asks), call, rest)
        caches.append(cache.write(rows, count))
        expert_logits.append(logits)
        passes.append(jnp.any(asks).astype(jnp.int32))
        calls = calls + asks

    # A parked sequence has not moved: its base will read the same token again.
    if strategy.reads_base:
        base_cache = replace(base_cache, lengths=state.base_cache.lengths + ready)

    weights, source = strategy.choose(Step(base_logits, tuple(expert_logits), gate_logits, deferred))
    token = take(weights, keys, config.sampling)
    ended = ready & jnp.isin(token, jnp.array(config.eos_ids, jnp.int32))
    writes = ready & ~ended
    place = jnp.where(writes, state.lengths, state.tokens.shape[1])  # beyond the end: dropped
    lengths = state.lengths + writes

    def put(array, value):
        return array.at[rows_of, place].set(value, mode="drop")

    decided = jnp.where(ready, state.lengths, state.tokens.shape[1])
    finish = jnp.where(ended, EOS, jnp.where(writes & (lengths >= requests.limits), LENGTH, state.finish))
    return State(
        tokens=put(state.tokens, token),
        lengths=lengths,
        finish=finish,
        waits=waits,
        sources=put(state.sources, source.astype(jnp.int32)),
        p_defer=put(state.p_defer, p),
        threshold=put(state.threshold, eta),
        calls=state.calls.at[rows_of, decided].set(calls, mode="drop"),
        expert_passes=state.expert_passes + jnp.array(passes, jnp.int32) if passes else state.expert_passes,
        base_cache=base_cache,
        expert_caches=tuple(caches),
    )


@partial(jax.jit, static_argnames=("graphs", "config"), donate_argnames="state")
def run_steps(graphs: Graphs, config: LoopConfig, models: Models, requests: Requests, state: State) -> State:
    """`config.steps` steps of the loop."""

    def body(state, _):
        return _step(graphs, config, models, requests, state), None

    return jax.lax.scan(body, state, length=config.steps)[0]


@partial(jax.jit, static_argnames=("graph", "size"), donate_argnames="state")
def prefill_base(graph, model: nnx.State, state: State, size: int) -> State:
    """The base reads each prompt but its last token, which the loop's first step reads. `size` ≥ longest prompt."""
    decoder = nnx.merge(graph, model)
    _, rows = decoder(state.tokens[:, :size], state.base_cache)
    return replace(state, base_cache=state.base_cache.write(rows, state.lengths - 1))


@partial(jax.jit, static_argnames=("graph", "expert", "size"), donate_argnames="state")
def catch_up(graph, model: nnx.State, state: State, expert: int, size: int) -> State:
    """An expert reads up to `size` unseen tokens, all but the text's last, of every sequence that waits for it.

    A sequence that then has only the last one left, which the loop reads, waits no more.
    """
    cache = state.expert_caches[expert]
    behind = unread(state, expert) - 1
    waiting = state.waits[:, expert]
    count = jnp.where(waiting, jnp.clip(behind, 0, size), 0)
    _, rows = nnx.merge(graph, model)(_window(state.tokens, cache.lengths, size), cache)
    caches = list(state.expert_caches)
    caches[expert] = cache.write(rows, count)
    passes = state.expert_passes.at[expert].add(1)
    waits = state.waits.at[:, expert].set(waiting & (behind > size))
    return replace(state, expert_caches=tuple(caches), expert_passes=passes, waits=waits)
