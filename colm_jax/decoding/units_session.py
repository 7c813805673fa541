"""Sessions of teams whose experts work on units: guests and remote experts, and views of the prompt.

The base decodes all sequences that can continue; pending calls are batched as in the resident loop. An expert that
answers at once (a guest) is called between two runs of the base's loop. One that takes its time (a remote expert)
writes while the other sequences go on.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from colm_jax.data.units import Unit, Units
from colm_jax.decoding.engine import TURNS, Engine
from colm_jax.decoding.requests import Request, RunningSequence, Update
from colm_jax.decoding.risk import Risk
from colm_jax.decoding.session import Session
from colm_jax.decoding.slots import BatchShape, FixedBatch
from colm_jax.decoding.speculation import Speculation
from colm_jax.decoding.state import EOS, STOP, UNFINISHED, DecodingState, LoopConfig, UnitState
from colm_jax.decoding.units_loop import Answers, accept, outlook, run_units
from colm_jax.errors import UserError
from colm_jax.experts.opening import OpeningTable
from colm_jax.experts.protocol import Call, Written
from colm_jax.models.prefill import power_of_two
from colm_jax.parallel import beside, heed_stop, to_host
from colm_jax.seeds import numbers_of_keys
from colm_jax.settings.generation import ExpertBatching, GenerationSettings
from colm_jax.settings.strategies import STRATEGIES
from colm_jax.text.detokenizer import TokenBytes

GUEST_TOKENS = 2  # of a guest for one of the base, at most, where the batch is fixed
_WIDTH = 64  # tokens of a unit, at most, as one program takes it where the batch is fixed
_PASSES = 3  # that a guest takes to write a unit, about


class UnitsSession(Session):
    """A running batch whose experts write units outside the loop; the interface is that of `Session`."""

    def __init__(
        self, engine: Engine, settings: GenerationSettings, fixed: FixedBatch | None = None, evidence: bool = False
    ):
        """Start without slots; arguments as those of `Session`.

        Raises:
          UserError: a strategy that compares the tokens of several models.
        """
        super().__init__(engine, settings, fixed, evidence)
        if not self._strategy.by_units:
            raise UserError(f"strategy {settings.strategy!r} compares the models' tokens; experts here write by units")
        assert engine.units is not None
        self._units: Units = engine.units
        self._calls, self._shared = engine.calls, engine.units.shared
        self._graphs, self._models = engine.needed_by(STRATEGIES["base"])
        self._table = OpeningTable.of(self._units.opening(0), to_host(self._models.allowed))
        self._reads_base = True
        self._started: dict[int, int] = {}  # by slot whose call is being answered: the base's length

    def _check_views(self, request: Request) -> None:
        if len(request.views) != len(self._calls.experts):
            raise UserError(f"{len(request.views)} views of the prompt for {len(self._calls.experts)} expert(s)")

    def step(self) -> list[Update]:
        """Admit queued requests, take in finished units, run the base, call experts, and return what is new."""
        heed_stop()
        self._admit()
        if self._state is None:
            return []
        self._take_in()
        self._read_on()
        if not self._all_rest and len(self._started) < len(self._running):
            self._scan(self._steps)
        updates = self._report()
        if self._state is not None:
            self._call()
        remote = any(expert.kind == "remote" for expert in self._calls.experts)
        self.stalled = remote and 0 < len(self._running) == len(self._started)
        return updates

    def close(self) -> None:
        """Cancel all requests."""
        for slot in self._running:
            self._calls.release(self._of(slot).id)
        self._started.clear()
        super().close()

    def _sequence(self, number: int, request: Request) -> RunningSequence:
        remote = any(expert.kind == "remote" for expert in self._calls.experts)
        own = self._units, self._calls.new_sequence(), remote
        return UnitSequence(
            number, request, self._engine.token_bytes, self._strategy.needs_gate, *own, self._risk, self._keeps
        )

    def _compiled(self, slots: int, shape: BatchShape) -> tuple[LoopConfig, DecodingState]:
        for expert in self._calls.experts:
            expert.expect(slots, None if self._fixed is None else GUEST_TOKENS * self._fixed.shape.positions)
        batching = self._settings.expert_batching
        if batching is None:
            largest = max((expert.bytes for expert in self._calls.experts), default=0)
            batching = ExpertBatching(slots, round(_PASSES * largest / self._engine.base_bytes))
        loop = LoopConfig(
            self._strategy,
            batching,
            (),
            self._engine.eos_ids,
            TURNS,
            Speculation(keeps_base=False),
            observes=self._observes,
        )
        state = self._engine.empty_state(replace(loop, strategy=STRATEGIES["base"]), shape)
        return loop, replace(state, units=beside(UnitState.none(shape.slots, shape.positions), self._models.base))

    def _of(self, slot: int) -> "UnitSequence":
        sequence = self._running[slot]
        assert isinstance(sequence, UnitSequence)
        return sequence

    def _scan(self, steps: int) -> None:
        """Run the base's loop."""
        assert self._loop is not None and self._state is not None
        started = np.zeros(self._shape.slots, bool)
        started[list(self._started)] = True
        models = self._graphs, self._loop, self._models, self._table
        self._state = run_units(*models, self._state, jnp.asarray(started), jnp.int32(steps), self._shared)

    def _call(self) -> None:
        """Start the pending calls, if they are many or old enough, or if nothing else can be done."""
        assert self._loop is not None and self._state is not None
        now = to_host(outlook(self._state))
        waiting = [slot for slot in self._running if now.expert[slot] and slot not in self._started]
        batching = self._loop.batching
        old = any(now.age[slot] >= batching.steps for slot in waiting)
        if not waiting or not (len(waiting) >= batching.calls or old or not now.runnable.any()):
            return
        seeds = numbers_of_keys(now.keys)
        for expert in sorted({int(now.expert[slot]) for slot in waiting}):
            slots = [slot for slot in waiting if now.expert[slot] == expert]
            self._started |= {slot: int(now.lengths[slot]) for slot in slots}
            self._calls.start(expert - 1, [self._call_of(slot, expert, seeds[slot]) for slot in slots])

    def _call_of(self, slot: int, expert: int, seed: int) -> Call:
        sequence = self._of(slot)
        request, settings = sequence.request, sequence.request.settings
        return Call(
            sequence=sequence.id,
            prompt=request.views[expert - 1],
            answer=sequence.units,
            seed=seed,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            most=self._engine.limit(request) - self._started[slot],
            number=request.key,
            sample=request.sample,
            observes=self._observes,
        )

    def _take_in(self) -> None:
        """Append what experts have finished; wait for it where the base can do nothing else."""
        assert self._state is not None and self._loop is not None
        if not self._started:
            return
        of = {self._of(slot).id: slot for slot in self._started}
        others = len(self._started) < len(self._running)
        # A server does not wait: others use the devices meanwhile.
        wait = self._fixed is None and not (others and to_host(outlook(self._state).runnable).any())
        found = [(of[written.sequence], written) for written in self._calls.finished(list(of), wait)]
        if not found:
            return
        answers = {slot: self._answer(slot, written) for slot, written in found}
        shortest = 8 if self._fixed is None else _WIDTH
        width = power_of_two(max(shortest, *(len(tokens) for tokens, _ in answers.values())))
        served, finish = np.zeros(self._shape.slots, bool), np.full(self._shape.slots, UNFINISHED, np.int32)
        tokens, counts = np.zeros((self._shape.slots, width), np.int32), np.zeros(self._shape.slots, np.int32)
        for slot, (own, why) in answers.items():
            served[slot], finish[slot], counts[slot], tokens[slot, : len(own)] = True, why, len(own), own
            del self._started[slot]
        asked = np.zeros(self._shape.slots, bool)
        asked[[slot for slot, written in found if written.asked]] = True
        evidence = np.full((self._shape.slots, 3), np.nan, np.float32)
        for slot, written in found:
            if written.evidence is not None:
                evidence[slot] = written.evidence
        given = Answers(*map(jnp.asarray, (served, tokens, counts, finish, asked, evidence)))
        self._state = accept(self._loop, self._state, given)
        self._prefill(0, [slot for slot, (own, why) in answers.items() if len(own) > 1 and why == UNFINISHED])

    def _answer(self, slot: int, written: Written) -> tuple[list[int], int]:
        """Return the base's tokens of what an expert has written, and why the text ends after them."""
        sequence = self._of(slot)
        request, length = sequence.request, self._started[slot]
        sequence.count_sent(written)
        if written.lost:
            sequence.lost.append(length - len(request.prompt))
            if request.settings.on_expert_failure == "stop":
                return [], STOP
        unit = written.unit
        # A unit that the base's tokens do not spell cannot stand: they would be another text.
        if unit is None or not self._units.spells(unit):
            return [], UNFINISHED
        stop_ids = set(request.settings.stop_token_ids or ())
        tokens = list(unit.tokens[: self._engine.limit(request) - length])
        for number, token in enumerate(tokens):
            if token in self._engine.eos_ids:
                return tokens[:number], EOS
            if token in stop_ids:
                return tokens[: number + 1], STOP
        return tokens, UNFINISHED

    def _release(self, slot: int) -> None:
        self._calls.release(self._of(slot).id)
        self._started.pop(slot, None)
        super()._release(slot)


class UnitSequence(RunningSequence):
    """A sequence in a slot with the units that it consists of."""

    def __init__(
        self,
        number: int,
        request: Request,
        token_bytes: TokenBytes | None,
        has_gate: bool,
        units: Units,
        id: int,
        remote: bool,
        risk: Risk | None = None,
        keeps_evidence: bool = False,
    ):
        """Start after the prompt; `id` is that of the sequence for experts, of which some may be `remote`."""
        super().__init__(number, request, token_bytes, has_gate, risk, keeps_evidence)
        self.id, self._known = id, units
        self.sent = {"requests": 0, "characters": 0} if remote else None
        self._columns["starts"] = []
        self._units: list[Unit] = []
        self._done = 0  # tokens that are in `_units`

    @property
    def units(self) -> Sequence[Unit]:
        """The units so far; the last one is finished too, where a call is pending."""
        starts, tokens = self._columns["starts"], self._columns["tokens"]
        while self._done < len(tokens):
            end = next((i for i in range(self._done + 1, len(tokens)) if starts[i]), len(tokens))
            unit = self._known.unit(tokens[self._done : end])
            self._units.append(unit)
            self._done = end
        return tuple(self._units)

    def count_sent(self, written: Written) -> None:
        """Count what was sent to a remote expert."""
        if self.sent is not None:
            self.sent["requests"] += written.requests
            self.sent["characters"] += written.characters
