"""What the decoding loop holds: the models, a place (*slot*) for each text of the batch, and how far each has come."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from colm_jax.decoding.correction import Correction, Watch
from colm_jax.decoding.parking import Parking
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.strategies import Strategy
from colm_jax.models.cache import KVCache

UNFINISHED, EOS, LENGTH = 0, 1, 2  # why a text stopped


@dataclass(frozen=True)
class PassSize:
    """Shape of an expert pass inside the loop."""

    tokens: int  # it reads, of all texts together
    chunk: int  # of one text at most


@dataclass(frozen=True)
class LoopConfig:
    """What is compiled into the loop."""

    strategy: Strategy
    sampling: Sampling
    parking: Parking
    sizes: tuple[PassSize, ...]  # of expert passes, smallest first
    eos_ids: tuple[int, ...]
    turns: int  # of one scan
    correction: Correction | None = None  # of strategies that take tokens back

    @property
    def reach(self) -> int:
        """Unread tokens of one text that a pass inside the loop can read; who has more waits for the host."""
        return self.sizes[-1].chunk


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
    """What each text's request asks for."""

    prompt_lengths: Int[Array, "B"]
    limits: Int[Array, "B"]  # text length at which it ends
    thresholds: Float[Array, "B"]
    schedules: Int[Array, "B"]  # place in SCHEDULES
    warmups: Int[Array, "B"]  # tokens over which the threshold warms up
    rates: Float[Array, "B"]  # of strategy `random`
    keys: Array  # [B] PRNG keys


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Asking:
    """Texts whose next token experts have a say in, from the base's step to the experts' answer."""

    experts: Bool[Array, "B M"]  # who has yet to answer; none: the text does not wait
    waited: Int[Array, "B"]  # steps of the base since it asked
    base: Float[Array, "B V"]  # logits behind the text, float32
    answers: tuple[Float[Array, "B V"], ...]  # each expert's
    gate: Float[Array, "B M"]  # gate logits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A batch in the middle of decoding. Entry t of a [B, S] array is about the token at position t of the text."""

    requests: Requests
    tokens: Int[Array, "B S"]  # prompt, then what was written
    lengths: Int[Array, "B"]  # text so far
    finish: Int[Array, "B"]  # UNFINISHED, EOS or LENGTH; an empty slot is finished
    asking: Asking
    sources: Int[Array, "B S"]
    p_defer: Float[Array, "B S"]
    threshold: Float[Array, "B S"]
    calls: Int[Array, "B S"]  # experts called to decide this token (an end of text, which is not written, included)
    steps: Int[Array, ""]  # steps of the base over the batch
    passes: Int[Array, "M"]  # passes of each expert over the batch
    caches: tuple[KVCache, ...]  # the base's, then each expert's
    watch: Watch | None  # of strategies that take tokens back


def unread(state: State, model: int) -> Int[Array, "B"]:
    """How many tokens of each text a model (0 the base) has not read."""
    return state.lengths - state.caches[model].lengths


def waiting(state: State) -> Bool[Array, "B"]:
    """Texts that wait for experts."""
    return jnp.any(state.asking.experts, axis=1)


def distant(state: State, reach: int) -> Bool[Array, "B M"]:
    """Which experts are asked that have more to read of a text than a pass inside the loop can."""
    far = [unread(state, m + 1) > reach for m in range(state.asking.experts.shape[1])]
    return state.asking.experts & (jnp.stack(far, axis=1) if far else state.asking.experts)
