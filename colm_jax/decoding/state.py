"""State of the decoding loop: the models' weights, and a *slot* for each sequence of the batch."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.correction import Trials
from colm_jax.decoding.sampling import SamplingParams
from colm_jax.decoding.strategies import Strategy
from colm_jax.models.arrays import pytree
from colm_jax.models.cache import KVCache
from colm_jax.settings.generation import Correction, ExpertBatching

UNFINISHED, EOS, STOP, LENGTH = 0, 1, 2, 3  # why a sequence ended
FINISH_REASONS = (None, "eos", "stop", "length")  # the same, in words


@dataclass(frozen=True)
class PassSize:
    """Shape of an expert pass inside the loop."""

    tokens: int  # of all sequences together
    chunk: int  # most of one sequence


@dataclass(frozen=True)
class LoopConfig:
    """What is compiled into the loop."""

    strategy: Strategy
    batching: ExpertBatching
    sizes: tuple[PassSize, ...]  # of expert passes, smallest first
    eos_ids: tuple[int, ...]
    turns: int  # of one scan
    correction: Correction | None = None  # of strategies that may retract tokens

    @property
    def reach(self) -> int:
        """Most unread tokens of one sequence that a pass inside the loop can read; the host prefills more."""
        return self.sizes[-1].chunk


@pytree
@dataclass(frozen=True)
class Models:
    """The team's weights and its vocabulary."""

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


@pytree
@dataclass(frozen=True)
class SlotRequests:
    """What the request in each slot asks for; of a single request, without the leading axis."""

    prompt_lengths: Int[Array, "*B"]
    limits: Int[Array, "*B"]  # sequence length at which it ends
    thresholds: Float[Array, "*B"]
    schedules: Int[Array, "*B"]  # index in SCHEDULE_NAMES
    warmups: Int[Array, "*B"]  # tokens over which the threshold falls to its final value
    rates: Float[Array, "*B"]  # of strategy `random`
    sampling: SamplingParams
    stop_ids: Int[Array, "*B E"]  # tokens that end the text; -1: none
    keys: Array  # [*B] PRNG keys


@pytree
@dataclass(frozen=True)
class PendingCalls:
    """Expert calls, from the base step that makes them to the expert pass that serves them."""

    experts: Bool[Array, "B M"]  # experts that have yet to answer; none: no call is pending
    age: Int[Array, "B"]  # base steps since the call
    base: Float[Array, "B V"]  # the base's logits of the next token, float32
    answers: tuple[Float[Array, "B V"], ...]  # each expert's
    gate_logits: Float[Array, "B G"]


@pytree
@dataclass(frozen=True)
class DecodingState:
    """A batch being decoded. Entry t of a [B, S] array is about the token at position t of the sequence."""

    requests: SlotRequests
    tokens: Int[Array, "B S"]  # the prompt, then the written tokens
    lengths: Int[Array, "B"]  # of each sequence so far
    finish: Int[Array, "B"]  # UNFINISHED, EOS, STOP or LENGTH; an empty slot is finished
    pending: PendingCalls
    sources: Int[Array, "B S"]
    p_defer: Float[Array, "B S"]
    threshold: Float[Array, "B S"]
    calls: Int[Array, "B S"]  # experts called to decide this token (an end of text, which is not written, included)
    steps: Int[Array, ""]  # base steps of the batch
    passes: Int[Array, "M"]  # passes of each expert inside the loop
    caches: tuple[KVCache, ...]  # the base's, then each expert's
    trials: Trials | None  # of strategies that may retract tokens


def unread(state: DecodingState, model: int) -> Int[Array, "B"]:
    """Return the number of tokens of each sequence that are not in a model's cache (0 the base)."""
    return state.lengths - state.caches[model].lengths


def has_pending(state: DecodingState) -> Bool[Array, "B"]:
    """Return the slots with a pending call."""
    return jnp.any(state.pending.experts, axis=1)


def out_of_reach(state: DecodingState, reach: int) -> Bool[Array, "B M"]:
    """Return the pending calls whose unread tokens exceed what a pass inside the loop can read."""
    far = [unread(state, m + 1) > reach for m in range(state.pending.experts.shape[1])]
    return state.pending.experts & (jnp.stack(far, axis=1) if far else state.pending.experts)
