"""Slots of a batch: making them, putting a text into one, letting a model read ahead, and making them longer.

What the host does between two scans of the loop, each as one jitted program over the batch's state.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from colm_jax.decoding.correction import Watch
from colm_jax.decoding.state import LENGTH, UNFINISHED, Asking, LoopConfig, Requests, State
from colm_jax.models.cache import BLOCK, KVCache
from colm_jax.models.config import ModelConfig

READ = (16, 64, 128, 256, 512, 1024)  # tokens of one text that a model reads in one pass between two scans
ROOM = max(READ[0], BLOCK)  # a pass stores its whole chunk behind a text's length, whatever part counts


def empty_state(
    loop: LoopConfig,
    models: Sequence[tuple[ModelConfig, jnp.dtype, Mesh | AbstractMesh | None]],
    words: int,
    batch: int,
    size: int,
) -> State:
    """A batch of empty slots.

    Args:
      loop: what is compiled into the loop.
      models: base and experts: configuration, type of the cache, and the mesh that it lies on.
      words: of the shared vocabulary.
      batch: slots.
      size: positions of each.
    """
    experts = len(models) - 1

    def numbers(*shape: int) -> Int[Array, "*N"]:
        return jnp.zeros(shape, jnp.int32)

    def logits() -> Float[Array, "B V"]:
        return jnp.zeros((batch, words), jnp.float32)

    return State(
        requests=Requests(
            prompt_lengths=jnp.ones((batch,), jnp.int32),
            limits=jnp.ones((batch,), jnp.int32),
            thresholds=jnp.ones((batch,), jnp.float32),
            schedules=numbers(batch),
            warmups=numbers(batch),
            rates=jnp.zeros((batch,), jnp.float32),
            keys=jnp.stack([jax.random.key(0)] * batch),
        ),
        tokens=numbers(batch, size),
        lengths=jnp.ones((batch,), jnp.int32),
        finish=jnp.full((batch,), LENGTH, jnp.int32),
        asking=Asking(
            experts=jnp.zeros((batch, experts), bool),
            waited=numbers(batch),
            base=logits(),
            answers=tuple(logits() for _ in range(experts)),
            gate=jnp.zeros((batch, max(1, experts)), jnp.float32),
        ),
        sources=numbers(batch, size),
        p_defer=jnp.zeros((batch, size), jnp.float32),
        threshold=jnp.zeros((batch, size), jnp.float32),
        calls=numbers(batch, size),
        steps=numbers(),
        passes=numbers(experts),
        caches=tuple(
            KVCache.empty(config, batch, size + ROOM, dtype, None if mesh is None or mesh.size == 1 else mesh)
            for config, dtype, mesh in models
        ),
        watch=None if loop.correction is None else Watch.none(batch, loop.correction.candidates),
    )


@partial(jax.jit, donate_argnames="state")
def insert(state: State, slot: Int[Array, ""], tokens: Int[Array, "S"], request: Requests) -> State:
    """Puts a text into a slot; no model has read any of it. `request` is its own, without the leading axis."""

    def put(array, value):
        return array.at[slot].set(value)

    return replace(
        state,
        requests=jax.tree.map(put, state.requests, request),
        tokens=put(state.tokens, tokens),
        lengths=put(state.lengths, request.prompt_lengths),
        finish=put(state.finish, UNFINISHED),
        asking=replace(state.asking, experts=put(state.asking.experts, False), waited=put(state.asking.waited, 0)),
        calls=put(state.calls, 0),
        caches=tuple(replace(cache, lengths=put(cache.lengths, 0)) for cache in state.caches),
        watch=None if state.watch is None else replace(state.watch, place=put(state.watch.place, -1)),
    )


@partial(jax.jit, donate_argnames="state")
def clear(state: State, slot: Int[Array, ""]) -> State:
    """Ends the text in a slot."""
    return replace(
        state,
        finish=state.finish.at[slot].set(LENGTH),
        asking=replace(state.asking, experts=state.asking.experts.at[slot].set(False)),
    )


@partial(jax.jit, static_argnames=("graph", "number", "size", "fresh"), donate_argnames="state")
def read_ahead(
    graph: nnx.GraphDef, model: nnx.State, state: State, slots: Int[Array, "N"], number: int, size: int, fresh: bool
) -> State:
    """A model reads up to `size` unread tokens, all but the last, of the texts in some slots.

    Args:
      graph: static half of the model.
      model: its weights.
      state: the batch.
      slots: whose texts; the same one twice does no harm.
      number: 0 the base, 1..M an expert.
      size: of the pass.
      fresh: none of the texts has been read before: there is no cache to look at.
    """
    cache = state.caches[number]
    past = cache.of(slots)
    if fresh:
        nothing = tuple(keys[:, :, :0] for keys in past.keys)
        past = replace(past, keys=nothing, values=nothing)
    count = jnp.clip(state.lengths[slots] - 1 - past.lengths, 0, size)
    places = jnp.minimum(past.lengths[:, None] + jnp.arange(size), state.tokens.shape[1] - 1)
    tokens = jnp.take_along_axis(state.tokens[slots], places, axis=1)
    _, rows = nnx.merge(graph, model)(tokens, past)
    written = cache.write(rows, count, slots)
    return replace(state, caches=tuple(written if i == number else c for i, c in enumerate(state.caches)))


@partial(jax.jit, static_argnames="more")
def longer(state: State, more: int) -> State:
    """The same batch with `more` positions in each slot."""

    def pad(x: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

    caches = [
        replace(cache, keys=tuple(pad(x, 2) for x in cache.keys), values=tuple(pad(x, 2) for x in cache.values))
        for cache in state.caches
    ]
    return replace(
        state,
        caches=tuple(caches),
        tokens=pad(state.tokens, 1),
        sources=pad(state.sources, 1),
        p_defer=pad(state.p_defer, 1),
        threshold=pad(state.threshold, 1),
        calls=pad(state.calls, 1),
    )
