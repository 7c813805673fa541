"""The engine as a service: one thread owns the devices, and runs the requests of all clients side by side.

Requests reach it through a queue, and what becomes of each goes back through a callback, so that an event loop neither
waits for a device nor touches it. A request joins the running batch of its strategy between two scans, and leaves it
when it is finished or cancelled.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from colm_jax.console import Progress
from colm_jax.decoding.candidates import CandidateReader, Candidates
from colm_jax.decoding.requests import Generation, Request, Token, Update
from colm_jax.decoding.session import Session
from colm_jax.decoding.slots import FixedBatch
from colm_jax.decoding.units_session import GUEST_TOKENS
from colm_jax.errors import UserError
from colm_jax.experts.guest import GuestExpert
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.serving import CONTEXT, ServingSettings
from colm_jax.settings.strategies import STRATEGIES, find_strategy
from colm_jax.team import CoLM

_STREAMED = 0.15  # seconds between two looks at a streamed answer, at most, about: each look costs some time
_PREFILL = 0.05  # seconds of prefill between two scans, where there are several passes to run
_MOST_STEPS = 16  # base steps between two looks
_ELSEWHERE = 0.003  # seconds between two looks at experts that write elsewhere
STOP_IDS = 8  # that a request may have, so that none changes a compiled shape
_STANDARD = ("defer", "base", "expert")

logger = logging.getLogger("colm_jax.serving")

# What the requests of one batch share: the strategy; "auto" or False, as in `GenerationSettings.speculate`, since
# True writes the same as "auto" and would be another program; and whether experts have views of their own.
Kind = tuple[str, bool | str, bool]


@dataclass(frozen=True)
class Event:
    """What became of one answer of a job: new tokens, and the answer itself once it is finished."""

    choice: int
    tokens: Sequence[Token]
    generation: Generation | None


class Job:
    """Some answers that a client waits for, all with the same settings."""

    def __init__(self, requests: Sequence[Request], kind: Kind, tell: Callable[[Event | Exception], None]):
        """Keeps the requests; `tell` gets each event, or why there will be none, in the service's thread."""
        self.requests, self.kind, self.tell = requests, kind, tell
        self.left = len(requests)  # answers that are neither finished nor cancelled


class Busy(Exception):
    """Too many answers wait for a slot."""


class Draining(Exception):
    """The service takes no new requests."""


class Failed(Exception):
    """The devices failed while they worked on a request."""


class Service:
    """A team, the thread that runs it, and its running batches."""

    def __init__(self, team: CoLM, settings: ServingSettings, progress: Progress = lambda done, total: None):
        """Validate the strategies; nothing is compiled before `start`.

        Args:
          team: the team.
          settings: how it is served.
          progress: called with the batches whose programs are compiled, and their number.

        Raises:
          UserError: a strategy that this team cannot follow.
        """
        self.team, self.settings, self._progress = team, settings, progress
        self.strategies = strategies_of(team, settings.strategies)
        self.context = min(team.context, CONTEXT if settings.context is None else settings.context)
        team.engine.context = self.context
        self.fixed = FixedBatch.of(settings.slots, self.context, seconds=_PREFILL)
        self.ready = threading.Event()
        self.draining = False
        self.compilations = 0  # programs that requests have compiled since the service was ready
        self.failure: BaseException | None = None  # that ended the thread
        self._cut = False  # nothing is begun any more
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._sessions: dict[Kind, Session] = {}
        self._jobs: dict[tuple[Kind, int], tuple[Job, int]] = {}  # by batch and number there: the job, and its choice
        self._unfinished: dict[Kind, int] = {}  # answers that were accepted and have not ended
        self._lock = threading.Lock()
        self._reader: CandidateReader | None = None
        self._reads: deque[tuple[Future[Candidates], Sequence[int]]] = deque()  # texts whose candidates are asked for
        # The one that is being read.
        self._reading: tuple[Future[Candidates], Iterator[Candidates | None]] | None = None
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)

    # Called by any thread.

    @property
    def default_strategy(self) -> str:
        """The strategy of requests that name none."""
        return self.strategies[0]

    def start(self) -> None:
        """Start the thread, which compiles all programs first; `ready` is set when it has."""
        self._thread.start()

    def kind_of(self, request: Request) -> Kind:
        """Return which batch a request belongs to."""
        settings, resident = request.settings, self.team.engine.resident
        if not resident or STRATEGIES[settings.strategy].calls == "never":
            return settings.strategy, "auto", False
        own_views = request.has_own_views
        return settings.strategy, False if settings.speculate is False and not own_views else "auto", own_views

    def submit(self, requests: Sequence[Request], tell: Callable[[Event | Exception], None]) -> Job:
        """Accept the requests of one client, which share their settings.

        Raises:
          Draining: the service ends.
          Busy: too many answers wait already.
        """
        kind = max(map(self.kind_of, requests), key=lambda kind: kind[2])  # one with a view of its own counts for all
        if STRATEGIES[kind[0]].calls == "never" and self.team.engine.resident:
            requests = [replace(request, views=()) for request in requests]  # no expert sees one
        job = Job(requests, kind, tell)
        with self._lock:
            if self.draining:
                raise Draining
            unfinished = self._unfinished.get(kind, 0) + len(requests)
            if unfinished > self.room:
                raise Busy
            self._unfinished[kind] = unfinished
            self._commands.put(lambda: self._begin(job))
        return job

    def cancel(self, job: Job) -> None:
        """End a job's answers; their slots are free before the next scan. Of a finished job nothing is left to end."""
        self._commands.put(lambda: self._cancel(job))

    def candidates(self, tokens: Sequence[int]) -> "Future[Candidates]":
        """Read a text between two scans."""
        found: Future[Candidates] = Future()
        with self._lock:
            if self._cut:
                found.set_exception(Draining())
            elif len(self._reads) >= self.room:
                found.set_exception(Busy())
            else:
                self._reads.append((found, tokens))
                self._commands.put(lambda: None)  # wakes the thread
        return found

    def drain(self) -> None:
        """Take no new requests; those that were accepted go on."""
        with self._lock:
            self.draining = True

    @property
    def room(self) -> int:
        """Answers of a batch that may be accepted at once: those that have a slot, and those that wait."""
        return self.fixed.shape.slots + self.settings.max_waiting

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, without directories."""
        here = iter(self.team.directories[1:])
        named = (str(getattr(expert, "name", "")) or next(here, Path("expert")).name for expert in self.team.experts)
        return tuple(name if "://" in name else Path(name).name for name in named)

    @property
    def idle(self) -> bool:
        """Whether no accepted answer is unfinished."""
        return not any(self._unfinished.values())

    @property
    def unfinished(self) -> int:
        """Answers that were accepted and have not ended."""
        return sum(self._unfinished.values())

    @property
    def running(self) -> int:
        """Answers that have a slot."""
        return sum(session.running for session in list(self._sessions.values()))

    @property
    def cache_use(self) -> float:
        """Share of the positions of the batches with requests that their texts fill."""
        busy = [session for session in list(self._sessions.values()) if not session.idle]
        room = self.fixed.shape.slots * self.fixed.shape.positions * len(busy)
        return sum(session.tokens for session in busy) / room if room else 0.0

    # In the service's thread.

    def _run(self) -> None:
        try:
            self._compile()
        except BaseException as error:  # the server ends with it
            self.failure = error
            return
        jax.monitoring.register_event_duration_secs_listener(self._count_compilation)
        self.ready.set()
        try:
            while self._take_commands():
                self._read_on()
                for kind, session in list(self._sessions.items()):
                    if not session.idle:
                        self._step(kind, session)
        except BaseException as error:  # no request can be answered any more, and /health says so
            logger.exception("the server's thread ended")
            self.failure = error
        finally:
            self.drain()
            self._cut_off()

    def _cut_off(self) -> None:
        """Report to all waiting requests that there will be no answer."""
        with self._lock:
            self._cut = True
        for kind in list(self._sessions):
            self._fail(kind, Draining())
        reading = [] if self._reading is None else [self._reading[0]]
        waiting = [future for future, _ in self._reads if future.set_running_or_notify_cancel()]
        for future in (*reading, *waiting):
            future.set_exception(Draining())
        with suppress(queue.Empty):
            while True:
                command = self._commands.get(block=False)
                if command is not None:
                    command()  # accepted before the end: it fails, too

    def stop(self) -> None:
        """End the thread once it has done what was asked of it before; answers that are left are cut off."""
        self._commands.put(None)
        self._thread.join(timeout=10)

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self._thread.is_alive()

    def _take_commands(self) -> bool:
        """Do what was asked of the thread up to now; return whether it goes on.

        Without work it waits until it is asked for something, and a little where all work is elsewhere.
        """
        sessions = [session for session in self._sessions.values() if not session.idle]
        busy = self._reading is not None or self._reads or not all(session.stalled for session in sessions)
        timeout = 0.0 if busy else _ELSEWHERE if sessions else None
        for _ in range(max(1, self._commands.qsize())):
            try:
                command = self._commands.get(block=timeout != 0.0, timeout=timeout)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            timeout = 0.0
        return True

    def _read_on(self) -> None:
        """Read one chunk of a text whose candidates are asked for."""
        assert self._reader is not None
        while self._reading is None and self._reads:
            future, tokens = self._reads.popleft()
            if future.set_running_or_notify_cancel():  # else nobody waits for it any more
                self._reading = future, self._reader.parts(tokens)
        if self._reading is None:
            return
        future, parts = self._reading
        try:
            found = next(parts)
        except Exception as error:
            logger.exception("a text could not be read")
            self._reading, self._reader = None, CandidateReader(self.team.engine)
            future.set_exception(error)
            return
        if found is not None:
            self._reading = None
            future.set_result(found)

    def _count_compilation(self, event: str, duration_secs: float, **_: Any) -> None:
        self.compilations += event == "/jax/core/compile/backend_compile_duration"

    def _session(self, kind: Kind) -> Session:
        if kind not in self._sessions:
            strategy, speculate, own_views = kind
            settings = GenerationSettings(strategy, speculate=speculate, batch_size=self.fixed.shape.slots)
            self._sessions[kind] = session = self.team.session(settings, own_views, self.fixed)
            # Caches are zeroed when they are made, which takes long. Those of other batches make room.
            session.keeps_caches = kind == (self.default_strategy, "auto", False)
        return self._sessions[kind]

    def _begin(self, job: Job) -> None:
        if not job.left:  # cancelled before it began
            return
        if self._cut:
            self._cancel(job)
            job.tell(Draining())
            return
        try:
            session = self._session(job.kind)
            for choice, request in enumerate(job.requests):
                self._jobs[job.kind, session.submit(request)] = job, choice
        except Exception as error:
            logger.exception("a request could not be begun")
            self._cancel(job)
            job.tell(Failed(str(error)))

    def _cancel(self, job: Job) -> None:
        own = [number for (_, number), (other, _) in self._jobs.items() if other is job]
        for number in own:
            del self._jobs[job.kind, number]
            self._sessions[job.kind].cancel(number)
        self._end(job, job.left)

    def _end(self, job: Job, answers: int) -> None:
        """Count answers of a job as ended."""
        job.left -= answers
        with self._lock:
            self._unfinished[job.kind] -= answers

    def _step(self, kind: Kind, session: Session) -> None:
        """Run a scan of one batch and tell its clients what is new."""
        begun = time.monotonic()
        try:
            updates = session.step()
        except Exception as error:  # of the device, or of an expert: the batch's requests fail, and it begins anew
            logger.exception("a scan of strategy %s failed", kind[0])
            self._fail(kind, error)
            return
        self._adapt(session, time.monotonic() - begun)
        for update in updates:
            self._tell(kind, update)

    def _adapt(self, session: Session, took: float) -> None:
        """Look at streamed answers about every _STREAMED seconds."""
        if took < _STREAMED / 2:
            session.stream_steps = min(2 * session.stream_steps, _MOST_STEPS)
        elif took > _STREAMED:
            session.stream_steps = max(session.stream_steps // 2, 1)

    def _tell(self, kind: Kind, update: Update) -> None:
        job, choice = self._jobs[kind, update.request]
        if update.generation is not None:
            del self._jobs[kind, update.request]
            self._end(job, 1)
        job.tell(Event(choice, update.tokens, update.generation))

    def _fail(self, kind: Kind, error: Exception) -> None:
        """Report to a batch's requests why there will be no answer, and begin a new batch."""
        with suppress(Exception):  # what failed may fail again
            self._sessions.pop(kind).close()
        jobs = {id(job): job for (own, _), (job, _) in self._jobs.items() if own == kind}
        self._jobs = {key: value for key, value in self._jobs.items() if key[0] != kind}
        for job in jobs.values():
            self._end(job, job.left)
            job.tell(error if isinstance(error, Draining) else Failed(str(error)))

    def _compile(self) -> None:
        """Run requests that need every program that a later one may need.

        Nothing is sent to remote experts, so that what their first calls need is left out.
        """
        self._reader = CandidateReader(self.team.engine)
        for _ in range(2):  # the second one has caches that a program has written
            self._reader.read([int(np.flatnonzero(self.team.allowed)[-1])])
        remote = "remote" in self.team.kinds
        kinds = [kind for strategy in self.strategies for kind in self._kinds(strategy)]
        by_units = [kind for kind in kinds if kind[2] or not self.team.engine.resident]
        calling = [kind for kind in by_units if STRATEGIES[kind[0]].calls != "never"]
        for expert in self.team.engine.unit_experts if calling else ():
            positions = GUEST_TOKENS * self.fixed.shape.positions
            expert.expect(len(calling) * self.fixed.shape.slots, positions)  # all these batches share its cache
            if isinstance(expert, GuestExpert):
                expert.compile_prefill()
        for number, kind in enumerate(kinds):
            self._progress(number, len(kinds))
            strategy = STRATEGIES[kind[0]]
            if remote and strategy.calls != "never" and not strategy.needs_gate:
                continue
            settings = GenerationSettings(
                kind[0], 1.0 if remote else 0.0, max_new_tokens=2, temperature=1.0, top_p=0.9, top_k=5, samples=2
            )
            session, examples = self._session(kind), list(self._examples(settings, kind[2]))
            session.compile_prefill()
            for batch in (examples, examples[:1]):  # together, and alone
                for request in batch:
                    session.submit(request)
                session.cancel(session.submit(examples[0]))
                for _ in session.drain():
                    pass
        self._progress(len(kinds), len(kinds))

    def _kinds(self, strategy: str) -> list[Kind]:
        """Return the batches of a strategy."""
        if not self.team.engine.resident or STRATEGIES[strategy].calls == "never":
            return [(strategy, "auto", False)]
        kinds: list[Kind] = [(strategy, "auto", False), (strategy, False, False)]
        return [*kinds, (strategy, "auto", True)] if STRATEGIES[strategy].by_units else kinds

    def _examples(self, settings: GenerationSettings, own_views: bool) -> Iterator[Request]:
        """Yield requests with prompts of such lengths that every prefill is needed."""
        units, token, context = self.team.units, int(np.flatnonzero(self.team.allowed)[-1]), self.context
        for number, size in enumerate((1, *(shape.tokens + 1 for shape in self.fixed.prefill))):
            length = min(size, context - 3)
            if units.shared:
                prompt: Sequence[int] = [token] * length
                views: tuple[Any, ...] = tuple([token] * max(1, length - own_views) for _ in self.team.experts)
            else:
                found = units.prompts("a " * (length // 3 + 1), "the warm-up")
                prompt, views = found.base, found.experts
            yield Request(prompt, settings, sample=number % 2, stream=bool(number % 2), views=views)


def strategies_of(team: CoLM, named: Sequence[str] | None) -> tuple[str, ...]:
    """Return the strategies that a team serves, that of requests that name none first.

    Args:
      team: the team.
      named: those that are to be served; None: the usual ones that it can follow.

    Raises:
      UserError: it cannot follow one of those.
    """
    gate_experts = None if team.gate is None else team.gate.kernel.shape[1]

    def check(strategy: str) -> None:
        find_strategy(strategy, len(team.experts), gate_experts, team.engine.resident)

    if named is not None:
        for strategy in named:
            check(strategy)
        return tuple(dict.fromkeys(named))
    found = []
    for strategy in _STANDARD:
        try:
            check(strategy)
        except UserError:
            continue
        found.append(strategy)
    return tuple(found)
