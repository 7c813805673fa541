"""The engine: requests in, batches through the loop, answers out.

The host does only what the loop cannot: it forms batches, prefills the base, lets an expert that is far behind catch
up between two scans, and looks for stop strings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from colm_jax.decoding.loop import (
    CHUNK,
    EOS,
    LENGTH,
    UNFINISHED,
    Graphs,
    LoopConfig,
    Models,
    Requests,
    State,
    catch_up,
    prefill_base,
    run_steps,
)
from colm_jax.decoding.sampling import Sampling
from colm_jax.decoding.strategies import Strategy
from colm_jax.models.cache import KVCache
from colm_jax.models.decoder import Decoder
from colm_jax.models.gate import Gate
from colm_jax.parallel import batch_sharding_of

STEPS = 16  # of one scan: how often the host looks
CATCH_UP = (64, 256)  # tokens an expert reads in one pass between two scans
EXPERT_ROOM = max(CHUNK, *CATCH_UP)  # a pass writes its whole chunk behind a text's length, whatever part counts
_SMALLEST = 64  # text buffer


@dataclass(frozen=True)
class Request:
    """One prompt and what is wanted of it."""

    prompt: Sequence[int]
    threshold: float
    max_new_tokens: int
    key: int  # which stream of random numbers is this request's own


@dataclass(frozen=True)
class Answer:
    """What was written; lists have one entry per token."""

    tokens: list[int]
    sources: list[int]  # 0 the base, 1..M an expert
    p_defer: list[float]
    threshold: list[float]
    finish_reason: str  # "eos", "stop" or "length"
    expert_calls: int


@dataclass(frozen=True)
class Options:
    """What all requests of a run share."""

    strategy: Strategy
    sampling: Sampling
    schedule: str = "constant"
    warmup: int = 0
    rate: float = 0.5  # of strategy `random`
    seed: int = 0
    batch_size: int = 8


# Given a request's number and its tokens so far: how many to keep because a stop string is complete, or None.
StopRule = Callable[[int, list[int]], int | None]


def _rounded(length: int) -> int:
    """The next power of two."""
    return max(_SMALLEST, 1 << (length - 1).bit_length())


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
        self._configs = [decoder.config for decoder in (base, *experts)]
        self._dtypes = [decoder.dtype for decoder in (base, *experts)]
        self._graphs = Graphs(base_graph, tuple(graph for graph, _ in split), gate_graph)
        self._models = Models(base_state, tuple(state for _, state in split), gate_state, jnp.asarray(allowed))
        self._eos_ids, self._context = eos_ids, context
        spreads = [batch_sharding_of(decoder) for decoder in (base, *experts)]
        self._meshes = [None if spread is None or spread.mesh.size == 1 else spread.mesh for spread in spreads]
        self.expert_passes = np.zeros(len(experts), np.int64)  # since the engine was made

    def run(
        self, requests: Sequence[Request], options: Options, stop: StopRule | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Yields (number of the request, answer), batch by batch; requests of like length share a batch."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        rows = 1 << (min(len(order), options.batch_size) - 1).bit_length()
        for first in range(0, len(order), options.batch_size):
            numbers = order[first : first + options.batch_size]
            yield from zip(numbers, self._run_batch([requests[i] for i in numbers], numbers, rows, options, stop))

    def _run_batch(self, batch, numbers, rows: int, options: Options, stop: StopRule | None) -> list[Answer]:
        loop = LoopConfig(options.strategy, options.sampling, options.schedule, options.warmup, self._eos_ids, STEPS)
        fixed, state = self._begin(batch, rows, options)
        if options.strategy.reads_base:
            longest = max(len(request.prompt) for request in batch)
            size = min(_rounded(longest), state.tokens.shape[1])
            state = prefill_base(self._graphs.base, self._models.base, state, size)
        kept: dict[int, int] = {}
        while True:
            state = run_steps(self._graphs, loop, self._models, fixed, state)
            if stop is not None:
                state = self._stop(state, batch, numbers, stop, kept)
            finish, waits = np.asarray(state.finish), np.asarray(state.waits)
            if not (finish == UNFINISHED).any():
                break
            for expert in range(waits.shape[1]):
                while waits[:, expert].any():
                    behind = np.asarray(state.lengths - state.expert_caches[expert].lengths)[waits[:, expert]].max()
                    size = next((size for size in CATCH_UP if size >= behind), CATCH_UP[-1])
                    model = self._models.experts[expert]
                    state = catch_up(self._graphs.experts[expert], model, state, expert, size)
                    waits = np.asarray(state.waits)
        self.expert_passes += np.asarray(state.expert_passes)
        host = jax.tree.map(np.asarray, replace(state, base_cache=KVCache((), (), state.lengths), expert_caches=()))
        return [self._answer(host, b, request, kept.get(b)) for b, request in enumerate(batch)]

    def _begin(self, batch: Sequence[Request], rows: int, options: Options) -> tuple[Requests, State]:
        """A batch before its first step, filled up to `rows` with finished ones.

        Rows and sizes come in powers of two, so that few programs have to be compiled.
        """
        count = len(batch)
        prompts = np.array([len(request.prompt) for request in batch] + [1] * (rows - count), np.int32)
        new = np.array([request.max_new_tokens for request in batch] + [0] * (rows - count), np.int32)
        limits = np.minimum(prompts + new, self._context)
        size = _rounded(int(limits.max()))
        tokens = np.zeros((rows, size), np.int32)
        for b, request in enumerate(batch):
            tokens[b, : len(request.prompt)] = request.prompt
        thresholds = [request.threshold for request in batch] + [1.0] * (rows - count)
        root = jax.random.key(options.seed)
        keys = [jax.random.fold_in(root, request.key) for request in batch] + [root] * (rows - count)
        experts = len(self._graphs.experts)

        def empty(model: int, size: int) -> KVCache:
            return KVCache.empty(self._configs[model], rows, size, self._dtypes[model], self._meshes[model])

        state = State(
            tokens=jnp.asarray(tokens),
            lengths=jnp.asarray(prompts),
            finish=jnp.array([UNFINISHED] * count + [LENGTH] * (rows - count), jnp.int32),
            waits=jnp.zeros((rows, experts), bool),
            sources=jnp.zeros((rows, size), jnp.int32),
            p_defer=jnp.zeros((rows, size), jnp.float32),
            threshold=jnp.zeros((rows, size), jnp.float32),
            calls=jnp.zeros((rows, size), jnp.int32),
            expert_passes=jnp.zeros((experts,), jnp.int32),
            base_cache=empty(0, size + 1),
            expert_caches=tuple(empty(m + 1, size + EXPERT_ROOM) for m in range(experts)),
        )
        fixed = Requests(
            prompt_lengths=jnp.asarray(prompts),
            limits=jnp.asarray(limits),
            thresholds=jnp.array(thresholds, jnp.float32),
            rates=jnp.full((rows,), options.rate, jnp.float32),
            keys=jnp.stack(keys),
        )
        return fixed, state

    def _stop(self, state: State, batch, numbers, stop: StopRule, kept: dict[int, int]) -> State:
        tokens, lengths = np.asarray(state.tokens), np.asarray(state.lengths)
        for b, request in enumerate(batch):
            if b not in kept:
                keep = stop(numbers[b], tokens[b, len(request.prompt) : lengths[b]].tolist())
                if keep is not None:
                    kept[b] = keep
        ended = np.isin(np.arange(len(lengths)), list(kept))
        return replace(
            state,
            finish=jnp.where(ended, LENGTH, state.finish),
            waits=jnp.where(ended[:, None], False, state.waits),
        )

    @staticmethod
    def _answer(state: State, b: int, request: Request, kept: int | None) -> Answer:
        start, end = len(request.prompt), int(state.lengths[b])
        reason = {EOS: "eos", LENGTH: "length"}[int(state.finish[b])]
        decided = end + (reason == "eos")
        if kept is not None:
            reason, end = "stop", start + kept
            decided = end
        return Answer(
            tokens=state.tokens[b, start:end].tolist(),
            sources=state.sources[b, start:end].tolist(),
            p_defer=[float(p) for p in state.p_defer[b, start:end]],
            threshold=[float(eta) for eta in state.threshold[b, start:end]],
            finish_reason=reason,
            expert_calls=int(state.calls[b, start:decided].sum()),
        )
