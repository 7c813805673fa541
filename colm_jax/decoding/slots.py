"""Slots of a batch: creating, growing, filling and emptying them, prefill, and reading what was written.

What the host does between two scans of the loop, each as one jitted program over the batch's state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.correction import Trials
from colm_jax.decoding.risk import EVIDENCE
from colm_jax.decoding.speculation import Agreement, Drafts
from colm_jax.decoding.state import LENGTH, UNFINISHED, DecodingState, Graphs, LoopConfig, SlotRequests
from colm_jax.models.cache import KVCache
from colm_jax.models.config import ModelConfig
from colm_jax.models.prefill import ROOM, PassShape, fixed_shapes, power_of_two
from colm_jax.models.sampling import SamplingParams

WINDOW = 32  # tokens of each slot that the host reads at once: more than one scan writes
COLUMNS = ("tokens", "sources", "p_defer", "threshold", "calls")


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch; each is a power of two, so that few programs are compiled."""

    slots: int = 0
    positions: int = 64  # of each slot
    stop_ids: int = 8  # of each slot


@dataclass(frozen=True)
class FixedBatch:
    """A batch that no request changes the shapes of, so that none compiles a program: what a server runs."""

    shape: BatchShape
    prefill: tuple[PassShape, ...]  # shapes of prefill passes, smallest first
    passes: int = 1  # of prefill between two scans, so that a long prompt does not hold up other sequences
    seconds: float = 0.0  # for more passes between two scans, which short prompts and small models need

    @classmethod
    def of(cls, slots: int, context: int, seconds: float = 0.0) -> "FixedBatch":
        """Return the batch of so many slots for texts up to a context; `seconds` as the field."""
        shape = BatchShape(slots=power_of_two(slots), positions=power_of_two(context))
        return cls(shape, fixed_shapes(shape.slots, shape.positions), seconds=seconds)


def empty_state(
    loop: LoopConfig,
    models: Sequence[tuple[ModelConfig, jnp.dtype, Mesh | AbstractMesh | None]],
    vocab_size: int,
    shape: BatchShape,
) -> DecodingState:
    """Return a batch of empty slots.

    Args:
      loop: what is compiled into the loop.
      models: base and experts: configuration, type of the cache, and its mesh.
      vocab_size: of the shared vocabulary.
      shape: of the batch.
    """
    experts, batch, size = len(models) - 1, shape.slots, shape.positions

    def numbers(*shape: int) -> Int[Array, "*N"]:
        return jnp.zeros(shape, jnp.int32)

    def floats(*shape: int) -> Float[Array, "*N"]:
        return jnp.zeros(shape, jnp.float32)

    return DecodingState(
        requests=SlotRequests(
            prompt_lengths=jnp.ones((batch,), jnp.int32),
            limits=jnp.ones((batch,), jnp.int32),
            thresholds=jnp.ones((batch,), jnp.float32),
            schedules=numbers(batch),
            warmups=numbers(batch),
            rates=floats(batch),
            sampling=SamplingParams(floats(batch), numbers(batch), floats(batch), floats(batch)),
            stop_ids=jnp.full((batch, shape.stop_ids), -1, jnp.int32),
            keys=jnp.stack([jax.random.key(0)] * batch),
        ),
        tokens=numbers(batch, size),
        lengths=jnp.ones((batch,), jnp.int32),
        finish=jnp.full((batch,), LENGTH, jnp.int32),
        drafts=Drafts.none(loop.speculation, batch, experts, vocab_size, loop.observes),
        agreement=Agreement.none(batch),
        sources=numbers(batch, size),
        p_defer=floats(batch, size),
        threshold=floats(batch, size),
        calls=numbers(batch, size),
        steps=numbers(),
        passes=numbers(experts),
        caches=tuple(
            KVCache.empty(config, batch, size + ROOM, dtype, None if mesh is None or mesh.size == 1 else mesh)
            for config, dtype, mesh in models
        ),
        trials=None if loop.correction is None else Trials.none(batch, loop.correction.candidates),
        evidence=floats(batch, size, len(EVIDENCE)) if loop.observes else None,
    )


@partial(jax.jit, donate_argnames="larger")
def move(state: DecodingState, larger: DecodingState) -> DecodingState:
    """Return an empty batch of a larger shape with the slots of `state` as its first."""
    return jax.tree.map(lambda new, old: jax.lax.dynamic_update_slice(new, old, (0,) * old.ndim), larger, state)


@partial(jax.jit, donate_argnames="state")
def insert(
    state: DecodingState, slot: Int[Array, ""], tokens: Int[Array, "S"], request: SlotRequests, agreement: Agreement
) -> DecodingState:
    """Put a sequence into a slot; no model has read any of it."""

    def put(array, value):
        return array.at[slot].set(value)

    this = jnp.arange(state.lengths.shape[0]) == slot
    return replace(
        state,
        requests=jax.tree.map(put, state.requests, request),
        tokens=put(state.tokens, tokens),
        lengths=put(state.lengths, request.prompt_lengths),
        finish=put(state.finish, UNFINISHED),
        drafts=state.drafts.without(this),
        units=None if state.units is None else state.units.without(this),
        agreement=jax.tree.map(put, state.agreement, agreement),
        calls=put(state.calls, 0),
        caches=tuple(replace(cache, lengths=put(cache.lengths, 0)) for cache in state.caches),
        trials=None if state.trials is None else replace(state.trials, place=put(state.trials.place, -1)),
    )


@partial(jax.jit, donate_argnames="state")
def with_finish(state: DecodingState, slots: Bool[Array, "B"], finish: Int[Array, ""]) -> DecodingState:
    """Change why some sequences ended: LENGTH lets them rest, UNFINISHED lets them go on."""
    return replace(state, finish=jnp.where(slots, finish, state.finish))


@partial(jax.jit, donate_argnames="state")
def clear(state: DecodingState, slot: Int[Array, ""]) -> DecodingState:
    """End the sequence in a slot."""
    this = jnp.arange(state.lengths.shape[0]) == slot
    drafts, units = state.drafts.without(this), None if state.units is None else state.units.without(this)
    # Of an ended sequence nothing is in the caches, so that no pass reads as far as its length.
    caches = tuple(replace(cache, lengths=cache.lengths.at[slot].set(0)) for cache in state.caches)
    return replace(state, finish=state.finish.at[slot].set(LENGTH), drafts=drafts, units=units, caches=caches)


@jax.jit
def window(state: DecodingState, starts: Int[Array, "B"]) -> dict[str, Array]:
    """Return WINDOW entries of each slot's COLUMNS from a position on; beyond the end, the last one repeats.

    Where experts work on units, "starts" says where these begin.
    """
    positions = jnp.minimum(starts[:, None] + jnp.arange(WINDOW), state.tokens.shape[1] - 1)
    found = {name: getattr(state, name) for name in COLUMNS}
    if state.units is not None:
        found["starts"] = state.units.starts
    found = {name: jnp.take_along_axis(column, positions, axis=1) for name, column in found.items()}
    if state.evidence is not None:
        found["evidence"] = jnp.take_along_axis(state.evidence, positions[..., None], axis=1)
    return found


@partial(jax.jit, static_argnames=("graphs", "number", "size", "fresh"), donate_argnames="state")
def prefill(
    graphs: Graphs,
    model: nnx.State,
    state: DecodingState,
    slots: Int[Array, "N"],
    number: int,
    size: int,
    fresh: bool,
) -> DecodingState:
    """Let a model read up to `size` unread tokens, all but the last, of the sequences in some slots.

    Args:
      graphs: static halves of the models.
      model: its weights.
      state: the batch.
      slots: of the sequences; the same one twice does no harm.
      number: 0 the base, 1..M an expert.
      size: of the pass.
      fresh: none of the sequences is in the model's cache yet, so that attention need not look there.
    """
    cache = state.caches[number]
    past = cache.of(slots)
    if fresh:
        nothing = tuple(keys[:, :, :0] for keys in past.keys)
        past = replace(past, keys=nothing, values=nothing)
    count = jnp.clip(state.lengths[slots] - 1 - past.lengths, 0, size)
    places = jnp.minimum(past.lengths[:, None] + jnp.arange(size), state.tokens.shape[1] - 1)
    tokens = jnp.take_along_axis(state.tokens[slots], places, axis=1)
    _, rows = nnx.merge(graphs.model(number), model)(tokens, past)
    written = cache.write(rows, count, slots)
    return replace(state, caches=tuple(written if i == number else c for i, c in enumerate(state.caches)))
