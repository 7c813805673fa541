"""`RemoteExpert`: an OpenAI-compatible endpoint as an expert that writes and scores spans.

What it is sent: its view of the prompt and the answer so far (of a `window`, its last spans), with pseudonyms where
there are rules, within the budgets; see redaction.py and ledger.py. Training texts are sent whole, each once.

What is not exact: an endpoint reads prompt and answer as one text and has its own tokens over the seam; a sampled span
whose first token has to be replaced is drawn from the top log-probabilities alone; opening masses are upper bounds.
"""

import queue
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from colm_jax import console
from colm_jax.console import Progress
from colm_jax.data.records import Example
from colm_jax.data.span_units import SpanUnits
from colm_jax.data.units import TextView
from colm_jax.errors import UserError
from colm_jax.experts.protocol import Call, UnitScores, Written
from colm_jax.experts.remote.abilities import Abilities, probe
from colm_jax.experts.remote.address import Address
from colm_jax.experts.remote.background import GRACE, Turns, begin
from colm_jax.experts.remote.bodies import Sampling
from colm_jax.experts.remote.client import Client, Deadline
from colm_jax.experts.remote.endpoint import Endpoint
from colm_jax.experts.remote.ledger import Budget, Ledger, Sent
from colm_jax.experts.remote.redaction import Pseudonyms, Redaction
from colm_jax.experts.remote.scoring import GreedySpans, Scorer
from colm_jax.experts.remote.writing import Draft, Outcome, Writer, sent_view, skipped
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.remote import RemoteSettings
from colm_jax.storage import path_of


@dataclass
class _Flight:
    """A call that is being answered."""

    call: Call
    deadline: Deadline
    sent: Sent  # for the sequence before it


class RemoteExpert:
    """An expert behind an endpoint; see `experts.protocol.Expert`."""

    kind = "remote"
    bytes = 0  # its weights are elsewhere

    def __init__(
        self,
        address: str | Address,
        units: SpanUnits,
        settings: RemoteSettings | None = None,
        *,
        ledger: Ledger | None = None,
        abilities: Abilities | None = None,
    ):
        """Connect, and print what the endpoint can do.

        Args:
          address: http(s)://HOST:PORT/v1#NAME; the key comes from the environment.
          units: how the team's texts are cut into spans.
          settings: time limits, budgets, pseudonyms; None: the defaults.
          ledger: what counts, and may write, what is sent; None: a new one, as the settings ask for it.
          abilities: what the endpoint can do, where that is known; None: it is asked.

        Raises:
          UserError: several processes, a wrong address or file of rules, no such server or model, or authentication
            that failed.
        """
        if jax.process_count() > 1:
            raise UserError(f"expert {address}: several processes cannot ask one endpoint together; use one process")
        self._settings = settings or RemoteSettings()
        found = Address.parse(address) if isinstance(address, str) else address
        self.name = str(found)
        self._units, self._rules = units, Redaction.read(self._settings.redact) if self._settings.redact else None
        self.ledger = ledger or Ledger(path_of(self._settings.ledger) if self._settings.ledger else None)
        client = Client(found, self._settings)
        if abilities is None:
            try:
                abilities = probe(client, Deadline.after(self._settings.deadline), self._probed(found.base))
            except BaseException:
                client.close()
                raise
            console.note(f"{found}: {abilities}")
            if client.has_key and not found.encrypted:
                console.note(f"{found}: is not encrypted; the key and all texts can be read on the way")
        self._finalizer = weakref.finalize(self, client.close)
        self.abilities = abilities
        self._endpoint = Endpoint(client, abilities, self.ledger)
        budget = Budget(self._settings.max_expert_calls, self._settings.max_sent_characters)
        self._writer = Writer(self._endpoint, units.rule, self._settings, budget, self.ledger)
        self._scorer = Scorer(self._writer, self._rules)
        self._turns = Turns(self._settings.concurrency)
        self._flights: dict[int, _Flight] = {}  # by sequence
        self._done: queue.SimpleQueue[tuple[_Flight | None, Any]] = queue.SimpleQueue()
        self._calls: dict[int, int] = {}  # of each sequence
        self._pseudonyms: dict[int, Pseudonyms] = {}

    def __repr__(self) -> str:
        """Return the address and what it can do; nothing secret."""
        return f"RemoteExpert({self.name!r}, {str(self.abilities)!r})"

    def _probed(self, url: str) -> Callable[[str], None]:
        """Return what writes the probe's requests to the ledger."""
        return lambda text: self.ledger.record(url, [(None, len(text), text)])

    @property
    def passes(self) -> int:
        """Requests since it was loaded, repeated ones and those of the probe included."""
        return self.ledger.total.requests

    def expect(self, sequences: int, positions: int | None = None) -> None:
        """Prepare nothing: the endpoint decides how much it answers at once."""

    def close(self) -> None:
        """Close the connections; what is being written is dropped."""
        self._flights.clear()
        self._finalizer()

    # Writing.

    def start(self, calls: Sequence[Call]) -> None:
        """Begin to write a span for each call: in one request where that can be, else concurrently.

        Raises:
          UserError: a prompt that the endpoint has nothing for, or a sampling parameter that it does not take.
        """
        drafts, deadline = list[Draft](), Deadline.after(self._settings.deadline)
        for call in calls:
            flight = _Flight(call, deadline, self.ledger.of(call.sequence))
            self.ledger.name(call.sequence, call.number, call.sample)
            number = self._calls.get(call.sequence, 0)
            why = self._writer.budget.refuses_call(number)
            self._flights[call.sequence] = flight
            if why:
                self._done.put((flight, Outcome(None, why, asked=False)))
                continue
            draft = self._draft(call)
            if isinstance(draft, Outcome):
                self._done.put((flight, draft))
                continue
            self._calls[call.sequence] = number + 1
            drafts.append(draft)
        flights = {draft.sequence: self._flights[draft.sequence] for draft in drafts if draft.sequence is not None}
        for group in self._writer.groups(drafts):
            begin(self._answering(group, flights, deadline))

    def _answering(self, group: Sequence[Draft], flights: dict[int, _Flight], deadline: Deadline) -> Callable[[], None]:
        """Return the work of a thread that has a group written."""

        def flight_of(draft: Draft) -> _Flight:
            assert draft.sequence is not None
            return flights[draft.sequence]

        def wanted(draft: Draft) -> bool:
            return draft.sequence is not None and self._flights.get(draft.sequence) is flight_of(draft)

        def run() -> None:
            if not self._turns.take(deadline):
                return  # `finished` says that the deadline has passed
            try:
                for draft, outcome in self._writer.write(group, deadline, wanted):
                    self._done.put((flight_of(draft), outcome))
            except BaseException as error:  # raised by `finished`
                self._done.put((None, error))
            finally:
                self._turns.give()

        return run

    def check(self, prompt: Any, settings: GenerationSettings, where: str) -> None:
        """Raise UserError for a prompt or sampling that the endpoint has nothing for; see `Expert.check`."""
        self._endpoint.view(prompt, where)
        Sampling(settings.temperature, settings.top_p, settings.top_k, settings.min_p, 0).fields(self.abilities.extras)

    def _draft(self, call: Call) -> Draft | Outcome:
        """Return what is to be sent for a call; the outcome where nothing can be."""
        view, spans = self._endpoint.view(call.prompt, self.name), [unit.text for unit in call.answer]
        if spans and view.text is None and not self.abilities.continues:
            return Outcome(None, "the endpoint cannot continue an answer, only begin one", asked=False)
        sampling = Sampling(call.temperature, call.top_p, call.top_k, call.min_p, call.seed)
        sampling.fields(self.abilities.extras)
        pseudonyms = self._pseudonyms_of(call.sequence)
        sent = sent_view(view, "".join(spans), pseudonyms, skipped(spans, self._settings.window))
        return Draft(sent.view, "".join(spans), call.sequence, sampling, pseudonyms)

    def _pseudonyms_of(self, sequence: int) -> Pseudonyms | None:
        if self._rules is None:
            return None
        return self._pseudonyms.setdefault(sequence, self._rules.pseudonyms())

    def finished(self, wait: bool) -> list[Written]:
        """Return the spans that are finished since the last call; with `wait`, until there is one, if any was begun.

        A call whose deadline has passed is lost, whatever its request is doing.

        Raises:
          UserError: authentication failed, or the model or the server is another one than it was.
        """
        found: list[Written] = []
        while True:
            timeout = None
            if wait and not found and self._flights:
                timeout = max(min(flight.deadline.left for flight in self._flights.values()) + GRACE, 0.0)
            try:
                flight, outcome = self._done.get(timeout=timeout) if timeout is not None else self._done.get_nowait()
            except queue.Empty:
                found += self._overdue()
                if found or not wait or not self._flights:
                    return found
                continue
            if flight is None:
                raise outcome
            if self._flights.get(flight.call.sequence) is flight:
                del self._flights[flight.call.sequence]
                found.append(self._written(flight, outcome))

    def _overdue(self) -> list[Written]:
        """Return the calls whose deadline has passed, and forget them."""
        late = [flight for flight in self._flights.values() if flight.deadline.left + GRACE <= 0]
        for flight in late:
            del self._flights[flight.call.sequence]
        why = f"{self.name}: no answer within {self._settings.deadline:g} s"
        return [self._written(flight, Outcome(None, why, lost=True)) for flight in late]

    def _written(self, flight: _Flight, outcome: Outcome) -> Written:
        """Return the answer to a call."""
        call, sent = flight.call, self.ledger.of(flight.call.sequence) - flight.sent
        unit, why = None, outcome.why
        if outcome.text is not None:
            unit = self._units.spelled(outcome.text, "".join(unit.text for unit in call.answer))
            if len(unit.tokens) > call.most:
                why = f"its span has {len(unit.tokens)} tokens, and there is room for {call.most}"
                unit = None
        return Written(call.sequence, unit, why, outcome.lost, sent.requests, sent.characters, asked=outcome.asked)

    def release(self, sequence: int) -> None:
        """Forget a sequence that has ended; what is being written for it is dropped."""
        for known in (self._flights, self._calls, self._pseudonyms):
            known.pop(sequence, None)
        self.ledger.forget(sequence)

    # Scoring.

    def score(self, texts: Sequence[Example | TextView], progress: Progress) -> list[UnitScores]:
        """Return the scores of texts; see `scoring.Scorer.score`."""
        return self._scorer.score(texts, progress)

    def scores(self, text: TextView) -> bool:
        """Return whether the endpoint gives log-probabilities of such a text."""
        return self._endpoint.scores_prompts(self._endpoint.view(text.prompt, self.name))

    def greedy_spans(self, texts: Sequence[TextView], sample: int, seed: int, progress: Progress) -> list[GreedySpans]:
        """Return a sample of the endpoint's own greedy spans; see `scoring.Scorer.greedy_spans`."""
        return self._scorer.greedy_spans(texts, sample, seed, progress)
