"""The engine: requests in, through the slots of a running batch, answers out as they are finished.

The host does only what the loop cannot: it puts a waiting request into the place of a finished one, lets the base read
its prompt, lets an expert that has much to read do so between two scans, and looks for stop strings. Several processes
that share the models' mesh all do so alike; what each puts in from its own device, JAX takes for the same everywhere.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from colm_jax.checks import INT32
from colm_jax.decoding.correction import Correction
from colm_jax.decoding.loop import run_turns
from colm_jax.decoding.parking import Parking
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.slots import READ, ROOM, clear, empty_state, insert, longer, read_ahead
from colm_jax.decoding.state import (
    EOS,
    LENGTH,
    UNFINISHED,
    Graphs,
    LoopConfig,
    Models,
    PassSize,
    Requests,
    distant,
)
from colm_jax.decoding.strategies import Strategy
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.parallel import heed_stop, to_host
from colm_jax.seeds import random_key

TURNS = 16  # of one scan, and steps of the base in it: how often the host looks
AT_ONCE = 512  # tokens that a model reads in one pass between two scans, of several texts
_SMALLEST = 64  # positions of a slot
_LOOKED_AT = ("tokens", "lengths", "finish", "sources", "p_defer", "threshold", "calls", "watch", "passes", "steps")


@dataclass(frozen=True)
class Request:
    """One prompt and what is wanted of it."""

    prompt: Sequence[int]
    threshold: float
    max_new_tokens: int
    key: int  # which stream of random numbers is this request's own
    sample: int = 0  # and which of its samples this is
    schedule: int = 0  # place in SCHEDULES
    warmup: int = 0  # length of the schedule, in tokens


@dataclass(frozen=True)
class Answer:
    """What was written; lists have one entry per token."""

    tokens: list[int]
    sources: list[int]  # 0 the base, 1..M an expert
    p_defer: list[float]
    threshold: list[float]
    finish_reason: str | None  # "eos", "stop" or "length"; None: not finished yet
    expert_calls: int


@dataclass(frozen=True)
class Options:
    """What all requests of a run share."""

    strategy: Strategy
    sampling: Sampling
    rate: float = 0.5  # of strategy `random`
    seed: int = 0
    batch_size: int = 8
    correction: Correction | None = None  # of strategies that take tokens back; None: its defaults
    parking: Parking | None = None  # None: all of a batch may wait, as long as an expert pass costs


# Given a request's number and its tokens so far: how many to keep because a stop string is complete, or None.
StopRule = Callable[[int, list[int]], int | None]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def pass_sizes(strategy: Strategy, batch: int) -> tuple[PassSize, ...]:
    """Sizes of expert passes, smallest first.

    Weights are read once a pass, however many tokens it reads; what a token costs beyond that is little on a TPU or GPU
    and a twentieth of a pass on a CPU. So the smallest that holds what is unread is taken of a few.
    """
    if strategy.calls != "deferred":
        return (PassSize(batch, 1),)  # an expert that reads every token has one to read
    first = PassSize(2, 2) if batch == 1 else PassSize(batch, 1)
    return (first, *(PassSize(times * max(batch, 4), 4 * times) for times in (2, 4, 8)))


class Engine:
    """Base, gate and experts ready to decode: layers unstacked, vocabulary and end-of-text ids fixed."""

    def __init__(
        self,
        base: Decoder,
        gate: Gate | None,
        experts: Sequence[Decoder],
        allowed: np.ndarray,
        eos_ids: tuple[int, ...],
        context: int,
    ):
        base_graph, base_state = nnx.split(base.unstacked())
        split = [nnx.split(expert.unstacked()) for expert in experts]
        gate_graph, gate_state = (None, None) if gate is None else nnx.split(gate)
        spreads = [decoder.batch_sharding for decoder in (base, *experts)]
        meshes = [None if spread is None else spread.mesh for spread in spreads]
        self._kinds = [(d.config, d.dtype, mesh) for d, mesh in zip((base, *experts), meshes)]
        self._graphs = Graphs(base_graph, tuple(graph for graph, _ in split), gate_graph)
        self._models = Models(base_state, tuple(state for _, state in split), gate_state, jnp.asarray(allowed))
        self._eos_ids, self._context = eos_ids, context
        self.expert_passes = np.zeros(len(experts), np.int64)  # since the engine was made
        self.base_steps = 0  # likewise, over whole batches

    def loop_config(self, options: Options, batch: int) -> LoopConfig:
        """What a run of `batch` slots compiles."""
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(s)) for s in (self._models.base, *self._models.experts)]
        parking = options.parking or Parking(batch, round(max(sizes[1:], default=0) / sizes[0]))
        correction = (options.correction or Correction()) if options.strategy.corrects else None
        shape = pass_sizes(options.strategy, batch)
        return LoopConfig(options.strategy, options.sampling, parking, shape, self._eos_ids, TURNS, correction)

    def run(
        self, requests: Sequence[Request], options: Options, stop: StopRule | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Yields (number of the request, answer) as answers are finished."""
        return self._serve(requests, options, stop)

    def stream(self, request: Request, options: Options, stop: StopRule | None = None) -> Iterator[Answer]:
        """Yields the answer as it grows, after every step of the base; the last one says why it ended.

        What a strategy may still take back, and nothing else, is held back.
        """
        return (answer for _, answer in self._serve([request], options, stop, grows=True))

    def _serve(
        self, requests: Sequence[Request], options: Options, stop: StopRule | None, grows: bool = False
    ) -> Iterator[tuple[int, Answer]]:
        """Yields answers when they are finished, or where one `grows`, as far as it has come after every step."""
        if not requests:
            return
        queue = deque(sorted(range(len(requests)), key=lambda i: self._limit(requests[i])))  # slots only grow
        batch = _power_of_two(min(len(queue), options.batch_size))
        team = _Running(self, options, batch)
        try:
            while queue or team.numbers:
                heed_stop()
                team.refill(queue, requests)
                team.advance(1 if grows else TURNS)
                for slot, number in list(team.numbers.items()):
                    if not grows and stop is None and team.host["finish"][slot] == UNFINISHED:
                        continue
                    answer = team.answer(slot, requests[number], lambda tokens, n=number: stop and stop(n, tokens))
                    if answer.finish_reason is not None:
                        team.release(slot)
                    if grows or answer.finish_reason is not None:
                        yield number, answer
        finally:  # a caller may stop listening, or be stopped within a scan, when the devices' state is given away
            self.expert_passes += team.passes
            self.base_steps += int(team.host.get("steps", 0))

    def _limit(self, request: Request) -> int:
        """The length at which a text ends."""
        return min(len(request.prompt) + request.max_new_tokens, self._context)


class _Running:
    """A batch while it runs: its state, and which request is in which slot."""

    def __init__(self, engine: Engine, options: Options, batch: int):
        self._engine, self._options = engine, options
        self._loop = engine.loop_config(options, batch)
        models, graphs, kinds = engine._models, engine._graphs, engine._kinds
        if options.strategy.calls == "never":
            models = Models(models.base, (), models.gate, models.allowed)
            graphs, kinds = Graphs(graphs.base, (), graphs.gate), kinds[:1]
        self._models, self._graphs = models, graphs
        self._size = _SMALLEST
        self._root = random_key(options.seed)
        self.state = empty_state(self._loop, kinds, models.allowed.shape[0], batch, self._size)
        self.host: dict[str, Any] = {}  # what of the state the host looks at, as of the last scan
        self.numbers: dict[int, int] = {}  # slot -> request
        self._read_apart = np.zeros(len(engine._models.experts), np.int64)

    @property
    def passes(self) -> np.ndarray:
        """[M] passes of each expert, as of the last scan."""
        inside = np.zeros_like(self._read_apart)
        inside[: len(self._models.experts)] = self.host.get("passes", 0)
        return inside + self._read_apart

    def refill(self, queue: deque[int], requests: Sequence[Request]) -> None:
        """Puts requests into empty slots; the base reads their prompts, all but the last token."""
        empty = [slot for slot in range(len(self.state.lengths)) if slot not in self.numbers]
        filled = {slot: queue.popleft() for slot in empty[: len(queue)]}
        if not filled:
            return
        size = _power_of_two(max(self._engine._limit(requests[number]) for number in filled.values()))
        if size > self._size:
            self.state, self._size = longer(self.state, size - self._size), size
        for slot, number in filled.items():
            self._insert(slot, requests[number])
        self.numbers |= filled
        if self._options.strategy.reads_base:
            self._read(0, list(filled))

    def _insert(self, slot: int, request: Request) -> None:
        key = jax.random.fold_in(self._root, request.key)
        if request.sample:  # tokens count from the other end
            key = jax.random.fold_in(key, np.uint32(2**32 - request.sample))
        tokens = np.zeros(self._size, np.int32)
        tokens[: len(request.prompt)] = request.prompt
        own = Requests(
            prompt_lengths=jnp.int32(len(request.prompt)),
            limits=jnp.int32(self._engine._limit(request)),
            thresholds=jnp.float32(request.threshold),
            schedules=jnp.int32(request.schedule),
            warmups=jnp.int32(min(request.warmup, INT32)),  # no context is so long
            rates=jnp.float32(self._options.rate),
            keys=key,
        )
        self.state = insert(self.state, jnp.int32(slot), jnp.asarray(tokens), own)

    def advance(self, steps: int) -> None:
        """One scan, and what experts have to read before the next."""
        self.state = run_turns(self._graphs, self._loop, self._models, self.state, jnp.int32(steps))
        if to_host(self.state.asking.experts).any():
            asked = to_host(distant(self.state, self._loop.reach))
            for expert in range(asked.shape[1]):
                if asked[:, expert].any():
                    self._read(expert + 1, np.flatnonzero(asked[:, expert]).tolist())
        self.host = to_host({name: getattr(self.state, name) for name in _LOOKED_AT})

    def _read(self, model: int, slots: Sequence[int]) -> None:
        """A model (0 the base) reads the texts in some slots, all but the last token, in as few passes as may be."""
        weights = [self._models.base, *self._models.experts][model]
        graph = [self._graphs.base, *self._graphs.experts][model]
        ends = to_host(self.state.lengths) - 1
        done = np.array(to_host(self.state.caches[model].lengths))
        left = [slot for slot in slots if done[slot] < ends[slot]]
        while left:
            group, size = _group(left, done, ends, self._size + ROOM)
            rows = np.array(group + group[-1:] * (_power_of_two(len(group)) - len(group)))
            fresh = not done[group].any()
            self.state = read_ahead(graph, weights, self.state, jnp.asarray(rows), model, size, fresh)
            done[group] = np.minimum(done[group] + size, ends[group])
            left = [slot for slot in left if done[slot] < ends[slot]]
            if model:
                self._read_apart[model - 1] += 1

    def answer(self, slot: int, request: Request, stop: Callable[[list[int]], int | None]) -> Answer:
        """What the text in a slot has become so far."""
        state, start, end = self.host, len(request.prompt), int(self.host["lengths"][slot])
        reason = {UNFINISHED: None, EOS: "eos", LENGTH: "length"}[int(state["finish"][slot])]
        decided = end + (reason == "eos")
        if reason is None and state["watch"] is not None and state["watch"].place[slot] >= 0:
            end = min(end, int(state["watch"].place[slot]))
        tokens = state["tokens"][slot, start:end].tolist()
        kept = stop(tokens)
        if kept is not None:
            reason, end = "stop", start + kept
            decided = end
        return Answer(
            tokens=tokens[: end - start],
            sources=state["sources"][slot, start:end].tolist(),
            p_defer=[float(p) for p in state["p_defer"][slot, start:end]],
            threshold=[float(eta) for eta in state["threshold"][slot, start:end]],
            finish_reason=reason,
            expert_calls=int(state["calls"][slot, start:decided].sum()),
        )

    def release(self, slot: int) -> None:
        """Empties a slot."""
        del self.numbers[slot]
        self.state = clear(self.state, jnp.int32(slot))


def _group(slots: Sequence[int], done: np.ndarray, ends: np.ndarray, room: int) -> tuple[list[int], int]:
    """Slots whose texts one pass can read, and its size.

    Args:
      slots: those that have something to read.
      done: [B] tokens read of each text.
      ends: [B] tokens to be read of each.
      room: positions of the cache; a pass stores its whole size.
    """

    def shape(slot: int) -> tuple[int, bool]:
        sizes = [size for size in READ if done[slot] + size <= room]
        enough = [size for size in sizes if size >= ends[slot] - done[slot]]
        return (enough or sizes[-1:])[0], done[slot] == 0

    size, fresh = shape(slots[0])
    return [slot for slot in slots if shape(slot) == (size, fresh)][: max(1, AT_ONCE // size)], size
