"""State of the decoding loop: the models' weights, and a *slot* for each sequence of the batch."""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.correction import Trials
from colm_jax.decoding.speculation import Agreement, Drafts, Speculation
from colm_jax.decoding.strategies import Strategy
from colm_jax.models.arrays import AnyArray, pytree
from colm_jax.models.cache import KVCache
from colm_jax.models.sampling import SamplingParams
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
    speculation: Speculation
    correction: Correction | None = None  # of strategies that may retract tokens
    observes: bool = False  # the evidence of each token is kept

    @property
    def reads_base(self) -> bool:
        """Whether the base runs decode steps, for its tokens or for drafts."""
        return self.strategy.reads_base or self.speculation.on

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

    def __hash__(self) -> int:
        """Return the hash, computed once: jit asks at every call, and a deep model's takes milliseconds."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.base, self.experts, self.gate))

    def model(self, number: int) -> nnx.GraphDef:
        """Return that of the base (0) or of an expert (1..M)."""
        return (self.base, *self.experts)[number]


@pytree
@dataclass(frozen=True)
class SlotRequests:
    """What the request in each slot asks for; of a single request, in host memory and without the leading axis."""

    prompt_lengths: Int[AnyArray, "*B"]
    limits: Int[AnyArray, "*B"]  # sequence length at which it ends
    thresholds: Float[AnyArray, "*B"]
    schedules: Int[AnyArray, "*B"]  # index in SCHEDULE_NAMES
    warmups: Int[AnyArray, "*B"]  # tokens over which the threshold falls to its final value
    rates: Float[AnyArray, "*B"]  # of strategy `random`
    sampling: SamplingParams
    stop_ids: Int[AnyArray, "*B E"]  # tokens that end the text; -1: none
    keys: Array  # [*B] PRNG keys


@pytree
@dataclass(frozen=True)
class UnitState:
    """The units of each sequence, where experts work on units outside the loop."""

    expert: Int[Array, "B"]  # 1..M: it is called to write the next unit; 0: no call is pending
    choice: Int[Array, "B"]  # the base's own next token, where a call is pending
    age: Int[Array, "B"]  # base steps for which the call has been pending
    closed: Bool[Array, "B"]  # an expert has closed the last unit: the next token opens one
    p_defer: Float[Array, "B"]  # of the unit that is being written, or called for
    threshold: Float[Array, "B"]  # likewise
    starts: Bool[Array, "B S"]  # a unit begins at this token
    base: Float[Array, "B 4"]  # `models.uncertainty.of_choice` of `choice`, where it is kept

    @classmethod
    def none(cls, batch: int, size: int) -> "UnitState":
        """Return that of empty slots."""
        return cls(  # arrays of their own: the state is donated
            expert=jnp.zeros((batch,), jnp.int32),
            choice=jnp.zeros((batch,), jnp.int32),
            age=jnp.zeros((batch,), jnp.int32),
            closed=jnp.zeros((batch,), bool),
            p_defer=jnp.zeros((batch,), jnp.float32),
            threshold=jnp.zeros((batch,), jnp.float32),
            starts=jnp.zeros((batch, size), bool),
            base=jnp.zeros((batch, 4), jnp.float32),
        )

    def without(self, slots: Bool[Array, "B"]) -> "UnitState":
        """Return this state where the given slots are those of sequences without any unit."""
        empty = UnitState.none(*self.starts.shape)

        def put(old: Array, new: Array) -> Array:
            return jnp.where(slots.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        return jax.tree.map(put, self, empty)


@pytree
@dataclass(frozen=True)
class DecodingState:
    """A batch being decoded. Entry t of a [B, S] array is about the token at position t of the sequence."""

    requests: SlotRequests
    tokens: Int[Array, "B S"]  # the prompt, the written tokens, and the drafts
    lengths: Int[Array, "B"]  # of each sequence so far, without drafts
    finish: Int[Array, "B"]  # UNFINISHED, EOS, STOP or LENGTH; an empty slot is finished
    drafts: Drafts  # undecided tokens that follow; a slot with drafts has a pending call
    agreement: Agreement
    sources: Int[Array, "B S"]
    p_defer: Float[Array, "B S"]
    threshold: Float[Array, "B S"]
    calls: Int[Array, "B S"]  # experts called to decide this token (an end of text, which is not written, included)
    steps: Int[Array, ""]  # base steps of the batch
    passes: Int[Array, "M"]  # passes of each expert inside the loop
    caches: tuple[KVCache, ...]  # the base's, then each expert's
    trials: Trials | None  # of strategies that may retract tokens
    units: UnitState | None = None  # where experts work on units
    # `risk.EVIDENCE`, where it is kept; of a unit at its first token, and NaN at its others.
    evidence: Float[Array, "B S E"] | None = None


def unread(state: DecodingState, model: int) -> Int[Array, "B"]:
    """Return the number of tokens of each sequence that are not in a model's cache (0 the base), drafts aside."""
    return state.lengths - state.caches[model].lengths


def has_pending(state: DecodingState) -> Bool[Array, "B"]:
    """Return the slots with a pending call."""
    return state.drafts.count > 0


def needed(state: DecodingState) -> Int[Array, "B M"]:
    """Return how many unread tokens each expert must read to decide what each slot calls it for; 0: it is not called.

    These are the tokens before the last position for which it is called, drafts included.
    """
    calls = state.drafts.calls
    last = jnp.max(jnp.where(calls, jnp.arange(calls.shape[1])[:, None] + 1, 0), axis=1)
    read = [cache.lengths for cache in state.caches[1:]]
    start = state.lengths[:, None] - jnp.stack(read, axis=1) if read else last
    return jnp.where(last > 0, start + last - 1, 0)


def out_of_reach(state: DecodingState, reach: int) -> Bool[Array, "B M"]:
    """Return the pending calls that need more tokens than a pass inside the loop can read."""
    return needed(state) > reach
