"""Sessions: running batches in which requests join and leave the slots at any time.

The host does only what the loop cannot: it puts a queued request into the slot of a finished one, prefills the base,
prefills an expert that has many unread tokens between two scans, and looks for stop strings. Several processes that
share the models' mesh all do the same; JAX requires that what each passes from its own device is the same everywhere.
"""

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from colm_jax.checks import INT32
from colm_jax.decoding.engine import TURNS, Engine
from colm_jax.decoding.loop import run_turns
from colm_jax.decoding.requests import Generation, Request, RunningSequence, Update
from colm_jax.decoding.risk import LEARNED_UNDER
from colm_jax.decoding.slots import (
    WINDOW,
    BatchShape,
    FixedBatch,
    clear,
    insert,
    move,
    prefill,
    window,
    with_finish,
)
from colm_jax.decoding.speculation import Agreement
from colm_jax.decoding.state import (
    EOS,
    FINISH_REASONS,
    LENGTH,
    UNFINISHED,
    DecodingState,
    LoopConfig,
    SlotRequests,
    out_of_reach,
)
from colm_jax.errors import UserError
from colm_jax.models.prefill import PREFILL_SHAPES, ROOM, power_of_two, prefill_group
from colm_jax.models.sampling import SamplingParams
from colm_jax.parallel import heed_stop, to_host
from colm_jax.seeds import random_key
from colm_jax.settings.generation import (
    DEFAULT_THRESHOLD,
    SCHEDULE_NAMES,
    GenerationSettings,
)
from colm_jax.settings.strategies import STRATEGIES

# Slots are made up to so many times longer than the requests at hand need, where a queued one needs more: each length
# compiles a loop, and for most jobs that takes longer than reading longer caches.
_GROWTH = 4


class Session:
    """A running batch: requests join and leave it at any time, and none changes another's result.

    An idle session holds no caches, unless it `keeps_caches`.
    """

    def __init__(
        self, engine: Engine, settings: GenerationSettings, fixed: FixedBatch | None = None, evidence: bool = False
    ):
        """Start without slots.

        Args:
          engine: the models.
          settings: strategy, batch_size, correction, expert_batching and speculate, which all its requests share.
          fixed: the batch's shapes; None: it grows with its requests.
          evidence: answers have the evidence of their tokens.
        """
        self._engine, self._settings, self._fixed = engine, settings, fixed
        self._strategy = STRATEGIES[settings.strategy]
        self._risk = engine.risk if settings.strategy == LEARNED_UNDER else None
        self._keeps, self._observes = evidence, evidence or self._risk is not None
        self._graphs, self._models = engine.needed_by(self._strategy)
        self._reads_base = self._strategy.reads_base  # every token
        self._queue: deque[tuple[int, Request]] = deque()
        self._running: dict[int, RunningSequence] = {}  # by slot
        self._behind: dict[int, list[int]] = {}  # by model: slots whose text it must read before they go on
        self.stream_steps = 1  # base steps of a scan while a request is streamed
        self.stalled = False  # all that runs waits for experts elsewhere
        self.keeps_caches = False  # while it is idle, too
        self._submitted = 0
        self._longest = 0  # limit of the requests since the session was idle, queued and cancelled ones included
        self._shape = BatchShape()
        self._loop: LoopConfig | None = None
        self._state: DecodingState | None = None
        self._counted: dict[str, Any] = {}  # steps and passes of the state that the engine's counters hold already

    @property
    def idle(self) -> bool:
        """Whether no request is queued or runs."""
        return not (self._queue or self._running)

    @property
    def waiting(self) -> int:
        """Requests that are queued."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    @property
    def tokens(self) -> int:
        """Tokens of the texts in the slots, as far as they were read."""
        return sum(sequence.position for sequence in list(self._running.values()))

    @property
    def shape(self) -> BatchShape:
        """Sizes of the batch; no slots while the session is idle."""
        return self._shape

    def submit(self, request: Request) -> int:
        """Queue a request; it joins the batch at a later step, when a slot is free.

        Returns:
          Its id, which updates name.

        Raises:
          UserError: a prompt that is empty or fills the context, settings with a list of a value for each prompt,
            another strategy than the session's, a stop string where the engine makes no text, or a view of the prompt
            that the session's experts cannot have.
        """
        settings, length = request.settings, len(request.prompt)
        if not 0 < length < self._engine.context:
            raise UserError(f"the prompt has {length} tokens; it must have from 1 to {self._engine.context - 1}")
        if settings.strategy != self._settings.strategy:
            raise UserError(f"strategy must be the session's, {self._settings.strategy}, got {settings.strategy}")
        if settings.stops and self._engine.token_bytes is None:
            raise UserError("stop needs an engine with a tokenizer's token_bytes; use stop_token_ids")
        self._check_views(request)
        settings.of_prompts(1)
        number, self._submitted = self._submitted, self._submitted + 1
        self._longest = max(self._longest, self._engine.limit(request))
        self._queue.append((number, request))
        return number

    def cancel(self, number: int) -> None:
        """Remove a request by its id; its slot is free from the next step on. A finished request is left as it is.

        Raises:
          KeyError: no such request was ever submitted.
        """
        if not 0 <= number < self._submitted:
            raise KeyError(number)
        self._queue = deque(item for item in self._queue if item[0] != number)
        for slot in [slot for slot, sequence in self._running.items() if sequence.number == number]:
            self._release(slot)
        if self.idle and not self.keeps_caches:
            self._drop()

    def close(self) -> None:
        """Cancel all requests, whatever state the devices are in."""
        self._queue.clear()
        self._running.clear()
        self._behind.clear()
        self._drop()

    def step(self) -> list[Update]:
        """Admit queued requests, run a scan of the loop, and return what is new.

        A scan has `stream_steps` base steps while a request is streamed, else TURNS.

        Raises:
          Stopped: a signal asked the process to stop.
        """
        heed_stop()
        self._admit()
        if self._state is None:
            return []
        self._read_on()
        if not self._all_rest:
            self._scan(self._steps)
        return self._report()

    @property
    def _all_rest(self) -> bool:
        """Whether every sequence waits for a model that still reads."""
        return len(self._resting) == len(self._running)

    @property
    def _resting(self) -> set[int]:
        """The slots that wait for a model that still reads."""
        return {slot for slots in self._behind.values() for slot in slots}

    @property
    def _steps(self) -> int:
        """Base steps of the next scan."""
        return self.stream_steps if any(sequence.request.stream for sequence in self._running.values()) else TURNS

    def _report(self) -> list[Update]:
        """Return what is new, and release the slots of finished requests."""
        updates = []
        for slot, reason in self._read().items():
            sequence = self._running[slot]
            if reason is None and sequence.stopped:
                reason = "stop"
            if (update := sequence.update(reason)) is not None:
                updates.append(update)
            if reason is not None:
                self._release(slot)
        return updates

    def compile_prefill(self) -> None:
        """Compile every prefill pass of a fixed batch, in an idle session; the rest any request compiles."""
        assert self._fixed is not None and self.idle
        self._grow(1, 1, 1)
        assert self._state is not None
        for model, weights in enumerate([self._models.base, *self._models.experts]):
            for shape in self._fixed.prefill:
                rows = jnp.asarray(np.zeros(shape.rows, int))  # staging an array is a program, too
                self._state = prefill(self._graphs, weights, self._state, rows, model, shape.tokens, False)
        self._drop()

    def drain(self) -> Iterator[tuple[int, Generation]]:
        """Run until no request is left, yielding (id, generation) as each is finished, in no particular order."""
        while not self.idle:
            for update in self.step():
                if update.generation is not None:
                    yield update.request, update.generation

    def _check_views(self, request: Request) -> None:
        """Raise UserError for views of the prompt that this session's experts cannot have."""
        if request.has_own_views:
            raise UserError("an expert with its own view of the prompt writes by units: use a UnitsSession")

    def _admit(self) -> None:
        """Put queued requests into empty slots, and prefill the base with their prompts."""
        most = self._settings.batch_size if self._fixed is None else self._fixed.shape.slots
        slots = max(self._shape.slots, power_of_two(min(len(self._running) + len(self._queue), most)))
        empty = [slot for slot in range(slots) if slot not in self._running][: len(self._queue)]
        if not empty:
            return
        admitted = {slot: self._queue.popleft() for slot in empty}
        requests = [request for _, request in admitted.values()]
        positions = power_of_two(max(map(self._engine.limit, requests)))
        positions = min(power_of_two(self._longest), _GROWTH * positions)
        stop_ids = max(len(request.settings.stop_token_ids or ()) for request in requests)
        self._grow(slots, positions, power_of_two(max(stop_ids, 1)))
        for slot, (number, request) in admitted.items():
            self._insert(slot, request)
            self._running[slot] = self._sequence(number, request)
        assert self._loop is not None and self._state is not None
        if self._reads_base:
            self._prefill(0, list(admitted))
        elif self._loop.speculation.on:
            drafts = to_host(self._state.agreement.ahead) > 0
            self._prefill(0, [slot for slot in admitted if drafts[slot]])

    def _sequence(self, number: int, request: Request) -> RunningSequence:
        """Return what is kept of a request that has joined the batch."""
        token_bytes, has_gate = self._engine.token_bytes, self._strategy.needs_gate
        return RunningSequence(number, request, token_bytes, has_gate, self._risk, self._keeps)

    def _compiled(self, slots: int, shape: BatchShape) -> tuple[LoopConfig, DecodingState]:
        """Return what a batch compiles, and empty slots for it."""
        loop = replace(self._engine.loop_config(self._settings, slots), observes=self._observes)
        return loop, self._engine.empty_state(loop, shape)

    def _grow(self, slots: int, positions: int, stop_ids: int) -> None:
        """Make the batch at least so large."""
        old = self._shape if self._fixed is None else self._fixed.shape
        shape = BatchShape(max(old.slots, slots), max(old.positions, positions), max(old.stop_ids, stop_ids))
        if shape == self._shape and self._state is not None:
            return
        self._loop, state = self._compiled(shape.slots, shape)
        if self._state is None:
            self._counted = {"steps": 0, "passes": 0}
        else:
            state = move(self._state, state)
        self._state, self._shape = state, shape

    def _insert(self, slot: int, request: Request) -> None:
        settings, length = request.settings, len(request.prompt)
        assert isinstance(settings.schedule, str) and isinstance(settings.warmup, int)
        key = jax.random.fold_in(random_key(settings.seed), request.key)
        if request.sample:  # tokens count from the other end
            key = jax.random.fold_in(key, np.uint32(2**32 - request.sample))
        tokens = np.zeros(self._shape.positions, np.int32)
        tokens[:length] = request.prompt
        stop_ids = np.full(self._shape.stop_ids, -1, np.int32)
        stop_ids[: len(settings.stop_token_ids or ())] = settings.stop_token_ids or ()
        threshold = DEFAULT_THRESHOLD if settings.threshold is None else settings.threshold
        own = SlotRequests(  # of NumPy's arrays: one of JAX's takes a dispatch to make
            prompt_lengths=np.array(length, np.int32),
            limits=np.array(self._engine.limit(request), np.int32),
            thresholds=np.array(threshold, np.float32),
            schedules=np.array(SCHEDULE_NAMES.index(settings.schedule), np.int32),
            warmups=np.array(min(settings.warmup, INT32), np.int32),  # no context is so long
            rates=np.array(settings.rate, np.float32),
            sampling=SamplingParams.of(settings),
            stop_ids=stop_ids,
            keys=key,
        )
        assert self._loop is not None
        known = self._engine.agreement.get(settings.strategy, (0.0, 0.0))
        agreement = Agreement.starting(self._loop.speculation, *known)
        self._state = insert(self._state, np.int32(slot), tokens, own, agreement)

    def _scan(self, steps: int) -> None:
        """Run one scan of the loop, and prefill experts with what they must read before the next."""
        assert self._loop is not None and self._state is not None
        self._state = state = run_turns(self._graphs, self._loop, self._models, self._state, jnp.int32(steps))
        if to_host(state.drafts.count).any():
            calls = np.array(to_host(out_of_reach(state, self._loop.reach)))
            calls[list(self._resting)] = False  # an expert reads for them already
            for expert in range(calls.shape[1]):
                self._prefill(expert + 1, np.flatnonzero(calls[:, expert]).tolist())

    def _prefill(self, model: int, slots: Sequence[int]) -> None:
        """Let a model (0 the base) read the sequences in some slots, all but the last token, before they go on.

        In a fixed batch they rest meanwhile, and each step runs a few passes (`_read_on`).
        """
        if not slots:
            return
        assert self._state is not None
        if self._fixed is None:
            while slots := self._pass(model, slots):
                pass
            return
        finish = to_host(self._state.finish)
        slots = [slot for slot in slots if finish[slot] == UNFINISHED]  # others would go on afterwards
        if not slots:
            return
        self._behind[model] = [*self._behind.get(model, ()), *slots]
        self._state = with_finish(self._state, self._mask(slots), jnp.int32(LENGTH))

    def _read_on(self) -> None:
        """Run as many passes of prefill as one step may, and let the sequences go on that wait for none."""
        assert self._state is not None
        if self._fixed is None:
            return
        passes, until = self._fixed.passes, time.monotonic() + self._fixed.seconds
        while self._behind and (passes > 0 or time.monotonic() < until):
            before, model = self._resting, next(iter(self._behind))
            if slots := self._pass(model, self._behind.pop(model)):
                self._behind[model] = slots  # behind the others, as the slots that have had a pass
            if done := before - self._resting:
                self._state = with_finish(self._state, self._mask(done), jnp.int32(UNFINISHED))
            passes -= 1

    def _mask(self, slots: Collection[int]) -> Bool[jax.Array, "B"]:
        """Return which slots these are."""
        mask = np.zeros(self._shape.slots, bool)
        mask[list(slots)] = True
        return jnp.asarray(mask)

    def _pass(self, model: int, slots: Sequence[int]) -> list[int]:
        """Run one pass of prefill; return the slots in which something is left to read."""
        weights = [self._models.base, *self._models.experts][model]
        assert self._state is not None
        ends = to_host(self._state.lengths) - 1
        done = np.array(to_host(self._state.caches[model].lengths))
        left = [slot for slot in slots if done[slot] < ends[slot]]
        if not left:
            return []
        shapes = PREFILL_SHAPES if self._fixed is None else self._fixed.prefill
        group, shape = prefill_group(left, done, ends, self._shape.positions + ROOM, shapes)
        count = power_of_two(len(group)) if self._fixed is None else shape.rows
        rows = np.array(group + group[-1:] * (count - len(group)))
        fresh = self._fixed is None and not done[group].any()
        self._state = prefill(self._graphs, weights, self._state, jnp.asarray(rows), model, shape.tokens, fresh)
        done[group] = np.minimum(done[group] + shape.tokens, ends[group])
        if model:
            self._engine.count(0, np.arange(len(self._models.experts)) == model - 1)
        left = [slot for slot in left if done[slot] < ends[slot]]
        return [*(slot for slot in left if slot not in group), *(slot for slot in left if slot in group)]

    def _read(self) -> dict[int, str | None]:
        """Append what was decided to the running sequences; return why each ended, or None, by slot."""
        state = self._state
        assert state is not None and self._loop is not None
        place = None if state.trials is None else state.trials.place
        lengths, finish, place, agreement, *counts = to_host(
            (state.lengths, state.finish, place, state.agreement, state.steps, state.passes)
        )
        self._count(*counts)
        for slot, sequence in self._running.items():
            sequence.guesses, sequence.hits = int(agreement.guesses[slot]), int(agreement.hits[slot])
            if self._loop.speculation.on and agreement.deferred[slot]:
                self._engine.agreement[self._strategy.name] = float(agreement.right[slot]), float(agreement.seen[slot])
        ends = {slot: int(lengths[slot]) for slot in self._running if slot not in self._resting}
        if place is not None:  # what is on trial may be rolled back
            on_trial = {slot: int(place[slot]) for slot in ends if finish[slot] == UNFINISHED and place[slot] >= 0}
            ends |= {slot: min(ends[slot], at) for slot, at in on_trial.items()}
        decided = {slot: end + int(finish[slot] == EOS) for slot, end in ends.items()}
        going_on = {slot: self._running[slot] for slot in ends}
        while any(sequence.position < decided[slot] for slot, sequence in going_on.items()):
            starts = np.zeros(self._shape.slots, np.int32)
            for slot, sequence in going_on.items():
                starts[slot] = sequence.position
            columns = to_host(window(state, jnp.asarray(starts)))
            for slot, sequence in going_on.items():
                first = sequence.position
                new = {name: column[slot, : min(decided[slot] - first, WINDOW)] for name, column in columns.items()}
                sequence.extend(new, ends[slot] - first)
        return {slot: FINISH_REASONS[finish[slot]] for slot in ends}

    def _count(self, steps: np.ndarray, passes: np.ndarray) -> None:
        """Add what is new to the engine's counters."""
        self._engine.count(int(steps - self._counted["steps"]), passes - self._counted["passes"])
        self._counted = {"steps": steps, "passes": passes}

    def _release(self, slot: int) -> None:
        """Empty a slot; without running sequences, drop the batch."""
        del self._running[slot]
        self._behind = {model: [other for other in slots if other != slot] for model, slots in self._behind.items()}
        self._behind = {model: slots for model, slots in self._behind.items() if slots}
        if self.idle and not self.keeps_caches:
            self._drop()
        else:
            self._state = clear(self._state, jnp.int32(slot))

    def _drop(self) -> None:
        """Free the batch's caches."""
        self._state, self._shape, self._longest = None, BatchShape(), 0
