"""What training needs of an endpoint: scores of texts, or its own greedy spans at a sample of places.

Training texts are sent whole, whatever the window, each once; a budget of characters is for each text.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from colm_jax.console import Progress
from colm_jax.data.records import Example
from colm_jax.data.units import TextView
from colm_jax.errors import MachineError, UserError
from colm_jax.experts.protocol import UnitScores
from colm_jax.experts.remote.answers import Malformed
from colm_jax.experts.remote.background import concurrently
from colm_jax.experts.remote.bodies import Sampling
from colm_jax.experts.remote.client import Deadline, Lost, Refused
from colm_jax.experts.remote.redaction import Redaction
from colm_jax.experts.remote.scores import SpanText, span_scores
from colm_jax.experts.remote.writing import Draft, Outcome, SentView, Writer, sent_view, skipped

_NOTHING = UnitScores(np.zeros(0, np.float32), np.zeros(0, bool))  # of a text without spans that count
_SCORED = 8  # texts of one request for scores, whose answer has every token's alternatives


@dataclass(frozen=True)
class GreedySpans:
    """Where an endpoint was asked for its own span of one text, N spans that count."""

    asked: Bool[np.ndarray, "N"]
    is_argmax: Bool[np.ndarray, "N"]  # its greedy span is the text's; False where it was not asked


class Scorer:
    """Scores texts with an endpoint."""

    def __init__(self, writer: Writer, rules: Redaction | None):
        self._writer, self._endpoint, self._settings = writer, writer.endpoint, writer.settings
        self._rules, self._name = rules, str(writer.endpoint.client.address)

    def score(self, texts: Sequence[Example | TextView], progress: Progress) -> list[UnitScores]:
        """Return the scores of texts, as `scores.span_scores`; several texts in a request, or concurrently.

        Args:
          texts: all of them `TextView`s. The first span of one without a prompt has no score.
          progress: called with the number of texts done, and of all.

        Raises:
          UserError: the endpoint gives no scores of prompts (`greedy_spans` does without), does not take a text, or a
            text is longer than the budget of characters.
          MachineError: the endpoint is lost.
        """
        sent = [self._text(text, number) for number, text in enumerate(texts)]
        found = {i: _NOTHING for i, (_, text) in enumerate(sent) if len(text.edges) - text.uncounted <= 1}
        for number, (view, _) in enumerate(sent):
            if not self._endpoint.scores_prompts(view.view):
                raise UserError(f"{self._name}: gives no log-probabilities of {_lacking(view, number)}")
        rest = [i for i in range(len(sent)) if i not in found]
        together = [i for i in rest if self._endpoint.together(sent[i][0].view)]
        size = min(_SCORED, self._settings.batch)
        groups = [together[i : i + size] for i in range(0, len(together), size)]
        groups += [[i] for i in sorted(set(rest) - set(together))]
        patience = 2 * (size + 1) * self._settings.deadline  # together, and each alone, again after a bad answer

        def work(group: list[int]) -> dict[int, UnitScores]:
            return self._scored(group, sent)

        try:
            for scores in concurrently(work, groups, self._settings.concurrency, patience):
                found |= scores
                progress(len(found), len(texts))
        except Lost as error:
            raise MachineError(f"{error}; rerun the same command to resume") from None
        return [found[number] for number in range(len(texts))]

    def _text(self, text: Example | TextView, number: int) -> tuple[SentView, SpanText]:
        """Return a training text as it is sent, and where its spans are."""
        if not isinstance(text, TextView):
            raise TypeError("a remote expert scores texts, whose tokens it does not know")
        where = f"{self._name}: text {number + 1}"
        pseudonyms = None if self._rules is None else self._rules.pseudonyms()
        sent = sent_view(self._endpoint.view(text.prompt, where), "".join(text.spans), pseudonyms)
        most = self._settings.max_sent_characters
        if most is not None and sent.view.characters > most:
            raise UserError(
                f"{where} has {sent.view.characters} characters, and max_sent_characters is {most}; shorten the text, "
                "or raise the limit"
            )
        starts = itertools.accumulate(map(len, text.spans), initial=sent.start)
        edges = tuple(sent.answer.place(start) for start in starts)
        return sent, SpanText(sent.answer.text, edges, bool(text.first), text.finished)

    def _scored(
        self, group: Sequence[int], sent: Sequence[tuple[SentView, SpanText]], again: bool = True
    ) -> dict[int, UnitScores]:
        """Return the scores of some texts, in one request, or one by one where that fails; a bad answer is asked for
        again.
        """
        deadline = Deadline.after(self._settings.deadline)
        try:
            scores = self._endpoint.prompt_scores([sent[i][0].view for i in group], deadline)
            return {i: span_scores(found, sent[i][1], self._writer.rule.opens) for i, found in zip(group, scores)}
        except (Refused, Malformed) as error:
            if len(group) == 1 and isinstance(error, Malformed) and again:
                return self._scored(group, sent, again=False)
            if len(group) == 1:
                raise UserError(f"{self._name}: text {group[0] + 1}: {error}") from None
        return {number: scores for i in group for number, scores in self._scored([i], sent).items()}

    def greedy_spans(self, texts: Sequence[TextView], sample: int, seed: int, progress: Progress) -> list[GreedySpans]:
        """Ask the endpoint for its own greedy span at a sample of places, for weak labels without scores.

        Args:
          texts: the training texts.
          sample: the number of places, drawn without replacement from all spans that count; at most all of them.
          seed: of the draw.
          progress: called with the number of places done, and of all.

        Returns:
          For each text where it was asked, and whether its span is the text's. Places beyond a budget are not asked,
          nor those within what a pseudonym stands for.

        Raises:
          UserError: the endpoint does not take the texts.
          MachineError: the endpoint is lost.
        """
        places = [(i, k) for i, text in enumerate(texts) for k in range(text.first, len(text.spans))]
        chosen = np.random.default_rng(seed).choice(len(places), min(sample, len(places)), replace=False)
        asked: dict[int, list[int]] = {}
        for n in sorted(chosen.tolist()):
            asked.setdefault(places[n][0], []).append(places[n][1])
        drafts = [draft for i, spans in asked.items() for draft in self._drafts(texts[i], i, spans)]
        counts = [len(text.spans) - text.first for text in texts]
        result = [GreedySpans(np.zeros(count, bool), np.zeros(count, bool)) for count in counts]
        done = 0

        def work(group: Sequence[Draft]) -> list[tuple[Draft, Outcome]]:
            return list(self._writer.write(group, Deadline.after(self._settings.deadline)))

        groups = self._writer.groups(drafts)
        try:
            for outcomes in concurrently(work, groups, self._settings.concurrency, self._settings.deadline):
                for draft, outcome in outcomes:
                    if outcome.lost:
                        raise Lost(outcome.why)
                    assert draft.sequence is not None
                    text, found = texts[-1 - draft.sequence], result[-1 - draft.sequence]
                    counted = draft.number - text.first
                    found.asked[counted] = outcome.asked
                    found.is_argmax[counted] = outcome.text == text.spans[draft.number]
                done += len(outcomes)
                progress(done, len(drafts))
        except Lost as error:
            raise MachineError(f"{error}; rerun the same command to resume") from None
        finally:
            for i in asked:
                self._writer.ledger.forget(-1 - i)
        return result

    def _drafts(self, text: TextView, i: int, spans: Sequence[int]) -> Iterator[Draft]:
        """Yield what is to be sent for some spans of text i, which counts as sequence -1 - i.

        Matches are found in the whole text, so that none is sent in part.
        """
        view = self._endpoint.view(text.prompt, f"{self._name}: text {i + 1}")
        pseudonyms = None if self._rules is None else self._rules.pseudonyms()
        whole = sent_view(view, "".join(text.spans), pseudonyms)
        for k in spans:
            if k and view.text is None and not self._endpoint.abilities.continues:
                raise UserError(f"{self._name}: cannot continue an answer, only begin one; give 'expert_prompt'")
            before = "".join(text.spans[:k])
            if whole.answer.inside(whole.start + len(before)):
                continue
            left_out = skipped(text.spans[:k], self._settings.window)
            sent = sent_view(view, "".join(text.spans), pseudonyms, left_out, shown=len(before))
            yield Draft(sent.view, before, -1 - i, Sampling(), pseudonyms, number=k)


def _lacking(sent: SentView, number: int) -> str:
    """Return what an endpoint does not score."""
    if sent.view.text is not None:
        return "prompts; use objective weak, whose labels come from the endpoint's own spans"
    return f"conversations (text {number + 1}); give 'expert_prompt', the prompt as a text, or use objective weak"
