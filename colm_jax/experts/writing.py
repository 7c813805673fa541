"""The programs of a guest: prefill, and one jitted loop that writes a unit for each sequence that waits.

The first pass of `write` reads the tokens of all waiting sequences that the guest has not read, in one line; each
further pass reads the token that was just written and shows the next one, which continues the unit or closes it.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.experts.opening import OpeningTable
from colm_jax.models.arrays import pytree
from colm_jax.models.cache import BLOCK, KVCache, no_rows
from colm_jax.models.decoder import Decoder
from colm_jax.models.ragged import Ragged
from colm_jax.models.sampling import SamplingParams, sample
from colm_jax.models.uncertainty import of_choice

CHUNK = 16  # tokens of one sequence that the first pass of `write` reads at most; `prefill` reads the rest


@pytree
@dataclass(frozen=True)
class Waiting:
    """What `write` needs to know of each slot's sequence."""

    unread: Int[Array, "B C"]  # its last tokens, which the guest has not read
    counts: Int[Array, "B"]  # how many of them; 0: the slot does not wait
    seam: Bool[Array, "B"]  # they end with the prompt
    room: Int[Array, "B"]  # most tokens to write, from 1 on
    sampling: SamplingParams
    keys: Array  # [B] PRNG keys


@pytree
@dataclass(frozen=True)
class Unfinished:
    """Units while they are written."""

    cache: KVCache
    tokens: Int[Array, "B W"]  # written ones; W is the longest unit
    counts: Int[Array, "B"]  # of written tokens; 0: none may begin a unit here
    chosen: Int[Array, "B"]  # tokens that were computed: the written ones and the one that closed the unit
    live: Bool[Array, "B"]  # the unit is not closed
    passes: Int[Array, ""]
    evidence: Float[Array, "B 3"]  # log-probability of the unit, largest entropy, smallest margin, in nats


@partial(jax.jit, static_argnames=("graph", "line", "longest", "observes"), donate_argnames="cache")
def write(
    graph: nnx.GraphDef,
    weights: nnx.State,
    allowed: Bool[Array, "V"],
    table: OpeningTable,
    cache: KVCache,
    waiting: Waiting,
    line: int,
    longest: int,
    observes: bool = False,
) -> Unfinished:
    """Write a unit for each sequence that waits.

    The first token is one that opens a unit and ends no text. A unit is closed where the next token would open another
    one or end the text (that token is dropped), or where there is no more room.

    Args:
      graph: static half of the guest.
      weights: its weights.
      allowed: the tokens that it may write, ends of text included.
      table: which of them open a unit.
      cache: what it has read of each sequence.
      waiting: what is to be read and written.
      line: places for the unread tokens of all sequences together.
      longest: most tokens of a unit; 1: nothing closes it but its end.
      observes: compute the units' evidence; else it is 0.
    """
    decoder = nnx.merge(graph, weights)
    slots = jnp.arange(waiting.counts.shape[0])
    ragged = Ragged.of(waiting.counts, line, waiting.unread.shape[1])
    hidden, rows = decoder(waiting.unread[ragged.text, ragged.offset][None], cache, ragged=ragged)
    assert rows is not None
    cache = cache.write_line(jax.tree.map(_with_block, rows), ragged)
    last = waiting.unread[slots, jnp.maximum(waiting.counts - 1, 0)]
    may = allowed & ~table.ends & table.opening(table.before(last, waiting.seam))
    begun = (waiting.counts > 0) & jnp.any(may, axis=1)
    logits = decoder.logits(ragged.at(hidden, waiting.counts[:, None] - 1)[:, 0], allowed)
    # Where nothing may begin, the token is not used.
    token = sample(jnp.where(may, logits, -jnp.inf), waiting.keys, waiting.sampling, begun)
    count = begun.astype(jnp.int32)
    state = Unfinished(
        cache=cache,
        tokens=jnp.zeros((len(slots), longest), jnp.int32).at[:, 0].set(token),
        counts=count,
        chosen=count,
        live=begun & (waiting.room > 1) & (longest > 1),
        passes=jnp.int32(1),
        evidence=_evidence(jnp.where(may, logits, -jnp.inf), token) if observes else jnp.zeros((len(slots), 3)),
    )
    step = partial(_step, decoder, allowed, table, waiting, observes)
    return jax.lax.while_loop(lambda state: jnp.any(state.live), step, state)


def _step(
    decoder: Decoder,
    allowed: Bool[Array, "V"],
    table: OpeningTable,
    waiting: Waiting,
    observes: bool,
    state: Unfinished,
) -> Unfinished:
    """Read the last token of each live unit, and write the next or close the unit."""
    slots, size, live = jnp.arange(state.live.shape[0]), state.tokens.shape[1], state.live
    last = state.tokens[slots, jnp.maximum(state.counts - 1, 0)]

    def read():
        hidden, rows = decoder(last[:, None], state.cache)
        return decoder.logits(hidden[:, 0], allowed), rows

    def idle():
        empty = no_rows(decoder.config, live.shape[0], 1, decoder.dtype)
        return jnp.zeros((live.shape[0], allowed.shape[0]), jnp.float32), empty

    # Always true here; as in the decoding loop, it keeps XLA from copying the cache before the write below.
    logits, rows = jax.lax.cond(jnp.any(live), read, idle)
    keys = jax.vmap(jax.random.fold_in)(waiting.keys, state.counts)
    token = sample(logits, keys, waiting.sampling, live)
    writes = live & ~table.opens(table.after[last], token)
    counts, evidence = state.counts + writes.astype(jnp.int32), state.evidence
    if observes:
        (log_p, entropy, margin), new = evidence.T, _evidence(logits, token).T
        joined = log_p + new[0], jnp.maximum(entropy, new[1]), jnp.minimum(margin, new[2])
        evidence = jnp.where(writes[:, None], jnp.stack(joined, -1), evidence)
    return Unfinished(
        cache=state.cache.write(rows, live.astype(jnp.int32)),
        tokens=state.tokens.at[slots, jnp.where(writes, state.counts, size)].set(token, mode="drop"),
        counts=counts,
        chosen=state.chosen + live.astype(jnp.int32),
        live=writes & (counts < jnp.minimum(waiting.room, size)),
        passes=state.passes + 1,
        evidence=evidence,
    )


def _evidence(logits: Float[Array, "B V"], token: Int[Array, "B"]) -> Float[Array, "B 3"]:
    """Return a token's log-probability, and the entropy and margin of its distribution."""
    return of_choice(logits, token)[:, jnp.array([3, 0, 2])]


def _with_block(rows: Float[Array, "1 K N h"]) -> Float[Array, "1 K W h"]:
    """Return a line of rows that is a block longer, as `KVCache.write_line` needs it."""
    return jnp.pad(rows, ((0, 0), (0, 0), (0, BLOCK), (0, 0)))


@partial(jax.jit, static_argnames=("graph", "fresh"), donate_argnames="cache")
def prefill(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: KVCache,
    slots: Int[Array, "N"],
    tokens: Int[Array, "N T"],
    counts: Int[Array, "N"],
    fresh: bool,
) -> KVCache:
    """Let a guest read tokens of some sequences.

    Args:
      graph: static half of the guest.
      weights: its weights.
      cache: what it has read of each sequence.
      slots: of the sequences; the same one twice does no harm.
      tokens: that follow.
      counts: how many of each row are tokens of its sequence.
      fresh: nothing of these sequences was read, so that attention need not look there.
    """
    past = cache.of(slots)
    if fresh:
        nothing = tuple(keys[:, :, :0] for keys in past.keys)
        past = replace(past, keys=nothing, values=nothing)
    _, rows = nnx.merge(graph, weights)(tokens, past)
    return cache.write(rows, counts, slots)


@partial(jax.jit, donate_argnames="larger")
def moved(cache: KVCache, larger: KVCache) -> KVCache:
    """Return an empty cache of a larger shape with the slots of `cache` as its first."""
    return jax.tree.map(lambda new, old: jax.lax.dynamic_update_slice(new, old, (0,) * old.ndim), larger, cache)
