"""From an endpoint's continuations to a span.

An endpoint is asked for a few tokens. The span is what they say up to the first boundary after its beginning; where
they do not reach it, it is asked to go on. It must begin at the seam: where the endpoint continues the word before
instead, its likeliest token that opens a span is chosen among the top log-probabilities, and it goes on from there.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from colm_jax.errors import UserError
from colm_jax.experts.remote.answers import UNKNOWN, Choice, Malformed
from colm_jax.experts.remote.bodies import Sampling, View
from colm_jax.experts.remote.client import Deadline, Lost, Refused
from colm_jax.experts.remote.endpoint import Endpoint
from colm_jax.experts.remote.ledger import Budget, Ledger
from colm_jax.experts.remote.redaction import Pseudonyms, Replaced, Restored
from colm_jax.settings.remote import RemoteSettings
from colm_jax.text.spans import METASPACE, SpanRule

_SPECIAL = re.compile(r"<[^<>\s]*>|\[[A-Z]+\]")  # how special tokens are spelled, as <|im_end|>


@dataclass(frozen=True)
class Outcome:
    """What became of a call."""

    text: str | None  # of the span; None: nothing that can stand here
    why: str = ""
    lost: bool = False
    asked: bool = True  # False: over a budget


@dataclass
class Draft:
    """A span that is being written."""

    view: View  # as it is sent, with pseudonyms
    before: str  # the answer's own text; "": it begins
    sequence: int | None
    sampling: Sampling
    pseudonyms: Pseudonyms | None = None
    raw: str = ""  # what the endpoint wrote so far, with pseudonyms
    opened: bool = False  # the span was seen to begin at the seam
    number: int = 0  # the caller's

    @property
    def sent(self) -> View:
        """What is sent next."""
        return self.view.followed_by(self.raw)

    def read(self, choice: Choice, rule: SpanRule) -> Outcome | None:
        """Take in a continuation; return the outcome, or None where the endpoint must go on."""
        raw = self.raw + choice.text
        if not choice.ended:
            raw = raw.rstrip(UNKNOWN)  # parts of a character, which it writes again
        if not raw:
            return Outcome(None, "it ended the text" if choice.ended else "it wrote nothing")
        if raw == self.raw and not choice.ended:
            return Outcome(None, "it wrote nothing more")
        found = self._restored(raw, choice.ended)
        if not self.opened and (choice.ended or found.known):
            if not self._opens(raw, found.text, rule):
                return self._open(choice, rule)
            self.opened = True
        self.raw = raw
        return _first_span(found, choice.ended, rule)

    def _restored(self, raw: str, ended: bool) -> Restored:
        if self.pseudonyms is None:
            return Restored(raw, (), (), len(raw))
        return self.pseudonyms.restore(raw, ended)

    def _opens(self, raw: str, text: str, rule: SpanRule) -> bool:
        """Return whether a span opens at the seam, in the text and in what was sent; after a prompt any does."""
        if not self.before:
            return True
        return rule.opens(self.before, text) and rule.opens(self.view.answer or self.view.text or " ", raw)

    def _open(self, choice: Choice, rule: SpanRule) -> Outcome | None:
        """Begin with the likeliest token that opens a span; by chance where the call is sampled."""
        if self.raw or not choice.tokens or not choice.tokens[0].top:
            return Outcome(None, "it continued the word before, and tells no other likely tokens")
        likely = [
            (text, log_prob)
            for text, log_prob in choice.tokens[0].top
            if text and UNKNOWN not in text and not _SPECIAL.fullmatch(text)
            if self._opens(text, self._restored(text, True).text, rule)
        ]
        if not likely:
            return Outcome(None, "it continued the word before, and no likely token begins another")
        highest = max(log_prob for _, log_prob in likely)
        if self.sampling.temperature > 0:
            weights = [math.exp((log_prob - highest) / self.sampling.temperature) for _, log_prob in likely]
            (self.raw,) = random.Random(self.sampling.seed).choices([text for text, _ in likely], weights)
        else:
            self.raw = next(text for text, log_prob in likely if log_prob == highest)
        self.opened = True
        return None


def _first_span(found: Restored, ended: bool, rule: SpanRule) -> Outcome | None:
    """Return the first span of a text that begins with one; None if its end is not known. No restored value is cut."""
    text = found.text
    last = len(text) if ended else found.known
    end = next(
        (
            i
            for i in range(1, last)
            if rule.opens(text[i - 1], text[i]) and not any(start < i < stop for start, stop in found.kept)
        ),
        None,
    )
    if end is None:
        if not ended:
            return None
        end = len(text.rstrip().rstrip(METASPACE))  # white space belongs to a span that does not follow
    span = text[:end]
    if not span.strip().strip(METASPACE):
        return Outcome(None, "it wrote only white space")
    strange = next((name for place, name in found.unknown if place < end), None)
    if strange is not None:
        return Outcome(None, f"it wrote {strange}, which stands for nothing")
    if UNKNOWN in span:
        return Outcome(None, "it wrote bytes that are no text")
    return Outcome(span)


@dataclass(frozen=True)
class Writer:
    """Has spans written."""

    endpoint: Endpoint
    rule: SpanRule
    settings: RemoteSettings
    budget: Budget
    ledger: Ledger

    def groups(self, drafts: Sequence[Draft]) -> list[list[Draft]]:
        """Return drafts by request: together where the endpoint takes lists, and they are sampled alike."""
        groups: dict[Any, list[Draft]] = {}
        for draft in drafts:
            greedy = draft.sampling.temperature == 0
            own = replace(draft.sampling, seed=0) if greedy else draft.sampling  # greedy choices need no seed
            draft.sampling = own
            key = own if self.endpoint.together(draft.view) and greedy else id(draft)
            groups.setdefault(key, []).append(draft)
        most = self.settings.batch
        return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]

    def write(
        self, group: Sequence[Draft], deadline: Deadline, wanted: Callable[[Draft], bool] = lambda draft: True
    ) -> Iterator[tuple[Draft, Outcome]]:
        """Yield each draft of a group with its outcome, as soon as it is known.

        Args:
          group: that goes in one request.
          deadline: of all of its requests.
          wanted: whether a draft is still waited for; for others nothing more is sent.

        Raises:
          UserError: what no repetition helps against.
        """
        waiting = list(group)
        for number in range(self.settings.rounds):
            attempts, asked = self.settings.retries + 1, list[Draft]()
            sizes: dict[int | None, int] = {}  # of each sequence in this request
            for draft in filter(wanted, waiting):
                spent, size = self._spent(draft), sizes.get(draft.sequence, 0) + draft.sent.characters
                allowed = attempts if draft.sequence is None else self.budget.attempts(spent, size, attempts)
                if allowed:
                    attempts, sizes[draft.sequence] = allowed, size
                    asked.append(draft)
                else:
                    yield draft, Outcome(None, self.budget.refuses_text(spent, size), asked=False)
            if not asked:
                return
            try:
                choices = self._ask(asked, number, deadline, attempts)
            except (Refused, Malformed) as error:
                if len(asked) == 1:
                    if isinstance(error, Malformed) and number + 1 < self.settings.rounds:
                        continue  # asked once more, which takes one of its rounds
                    yield asked[0], self._failed(error)
                else:  # it may be because of one of them, or of the list
                    for draft in asked:
                        yield from self.write([draft], deadline, wanted)
                return
            except Lost as error:
                yield from ((draft, Outcome(None, str(error), lost=True)) for draft in asked)
                return
            outcomes = [(draft, draft.read(choice, self.rule)) for draft, choice in zip(asked, choices)]
            yield from ((draft, outcome) for draft, outcome in outcomes if outcome is not None)
            waiting = [draft for draft, outcome in outcomes if outcome is None]
        most = self.settings.rounds * self.settings.tokens
        yield from ((draft, Outcome(None, f"its span did not end within {most} tokens")) for draft in waiting)

    def _ask(self, drafts: Sequence[Draft], number: int, deadline: Deadline, attempts: int) -> list[Choice]:
        """Return the next continuation of each."""
        sampling = drafts[0].sampling
        if sampling.temperature > 0:
            sampling = replace(sampling, seed=sampling.seed + number)
        views, sequences = [draft.sent for draft in drafts], [draft.sequence for draft in drafts]
        return self.endpoint.continuations(views, sequences, self.settings.tokens, sampling, deadline, attempts)

    def _spent(self, draft: Draft) -> int:
        return 0 if draft.sequence is None else self.ledger.of(draft.sequence).characters

    def _failed(self, error: Refused | Malformed) -> Outcome:
        """Return what a request alone that fails for good means."""
        if isinstance(error, Refused) and error.status in (403, 404):
            raise UserError(f"{self.endpoint.client.address}: {error}") from None
        return Outcome(None, f"{self.endpoint.client.address}: {error}", lost=True)


def skipped(spans: Sequence[str], window: int | None) -> int:
    """Return how many characters at the beginning of an answer are not sent."""
    return 0 if window is None else sum(map(len, spans[:-window]))


@dataclass(frozen=True)
class SentView:
    """A view with pseudonyms, and where the answer is in it."""

    view: View
    answer: Replaced  # what the spans are in: of a text the whole, of a conversation the answer
    start: int  # where the answer begins in its original


def sent_view(
    view: View, answer: str, pseudonyms: Pseudonyms | None, skipped: int = 0, shown: int | None = None
) -> SentView:
    """Return an expert's view of a prompt and the answer so far, as they are sent.

    Args:
      view: of the prompt.
      answer: all of it.
      pseudonyms: of the sequence; None: nothing is replaced. Matches are found before anything is left out.
      skipped: characters at the beginning of the answer that are not sent.
      shown: characters of the answer after which nothing is sent, outside of matches; None: all.
    """
    start = 0 if view.text is None else len(view.text)
    whole = answer if view.text is None else view.text + answer
    replaced = Replaced(whole, ()) if pseudonyms is None else pseudonyms.replace(whole)
    text = replaced.without(start, start + skipped)
    if shown is not None:
        text = text[: len(text) - (len(replaced.text) - int(replaced.place(start + shown)))]
    if view.text is not None:
        return SentView(View(text=text), replaced, start)
    if pseudonyms is not None:
        messages, tools = (tuple(pseudonyms.replace_all(list(part))) for part in (view.messages, view.tools))
        view = View(messages=messages, tools=tools)
    return SentView(replace(view, answer=text), replaced, 0)
