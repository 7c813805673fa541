"""Requests as the host sees them: what one asks for, what it has got so far, and the finished generation.

Free of JAX: files, reports and servers read generations without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from colm_jax.decoding.risk import EVIDENCE, Mark, Risk, handed_on, marks, shown
from colm_jax.settings.generation import GenerationSettings
from colm_jax.text.detokenizer import TokenBytes
from colm_jax.text.generated import GeneratedText, cut


@dataclass(frozen=True)
class Request:
    """One answer to one prompt.

    Its random numbers follow from the settings' seed, `key` and `sample` alone, wherever and with whomever it runs.
    """

    prompt: Sequence[int]
    settings: GenerationSettings = field(default_factory=GenerationSettings)  # without lists of a value for each prompt
    key: int = 0  # of the prompt's random numbers
    sample: int = 0  # which of the prompt's samples this is
    stream: bool = False  # report tokens as they are written
    views: tuple[Any, ...] = ()  # the prompt as each expert sees it (`data.units.Prompts`); (): as the base does

    @property
    def has_own_views(self) -> bool:
        """Whether an expert sees another prompt than the base."""
        return any(view != self.prompt for view in self.views)


@dataclass(frozen=True)
class Token:
    """One written token.

    Example:
      >>> from colm_jax import CoLM
      >>> team = CoLM.from_pretrained(base="RUN/team")
      >>> tokens = list(team.stream("hello", strategy="expert", max_new_tokens=4))
      >>> {token.source for token in tokens} <= {1}
      True
    """

    token: int
    source: int  # 0 the base, 1..M an expert
    p_defer: float | None  # None for strategies without a gate
    threshold: float
    text: str  # what it adds to the answer
    calls: int = 0  # of experts, to decide it
    risk: float | None = None  # that the answer goes wrong here; None where the team has not learned it
    check: float | None = None  # the risk for which it is marked: its own, or of white space before; None: no mark


@dataclass(frozen=True)
class Generation:
    """One finished answer; the lists have an entry per written token.

    Example:
      >>> from colm_jax import CoLM
      >>> team = CoLM.from_pretrained(base="RUN/team")
      >>> (answer,) = team.generate(["hello"], threshold=0.5, max_new_tokens=8)
      >>> by_expert = [piece for piece, source in zip(team.pieces(answer), answer.sources) if source > 0]
      >>> answer.finish_reason in ("eos", "length")
      True
    """

    prompt_ids: list[int]
    text: str
    tokens: list[int]
    sources: list[int]  # 0 the base, 1..M an expert
    p_defer: list[float] | None  # None for strategies without a gate
    threshold: list[float]
    finish_reason: str  # "eos", "stop" or "length"
    expert_calls: int
    sample: int = 0  # which of its prompt's samples this is
    guesses: int = 0  # deferred tokens after which the base ran on with its own choice; depends on batch and history
    hits: int = 0  # of these, how many the expert confirmed
    lost: tuple[int, ...] = ()  # tokens (numbers in this answer) at which an expert was called and did not answer
    sent: dict[str, int] | None = None  # to remote experts: "requests" and "characters"; None: there are none
    log_probs: list[list[float]] | None = None  # of each token under base and experts, nats; None where not asked for
    # What the team has learned of where its answers go wrong (`decoding.risk`); None where it has learned nothing.
    risk: float | None = None  # probability that the answer is wrong; None of one without a token
    risks: list[float] | None = None  # that it goes wrong at each token
    check: tuple[Mark, ...] | None = None  # the parts of the text to check
    evidence: np.ndarray | None = None  # [N, E]: `decoding.risk.EVIDENCE` of each token; None where not asked for


@dataclass(frozen=True)
class Update:
    """What a step brought a request."""

    request: int  # its id
    tokens: list[Token]  # of a streamed request: new ones that nothing can change any more
    generation: Generation | None  # once it is finished


class RunningSequence:
    """The final part of a sequence in a slot: tokens that are not rolled back any more, and their text.

    Grows by what is new, so that an answer of N tokens costs O(N) however often the host looks.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        token_bytes: TokenBytes | None,
        has_gate: bool,
        risk: Risk | None = None,
        keeps_evidence: bool = False,
    ):
        """Starts after the prompt; without `token_bytes` there is no text."""
        self.number, self.request = number, request
        self.guesses = self.hits = 0  # of `Generation`, so far
        self.lost: list[int] = []  # likewise
        self.sent: dict[str, int] | None = None  # likewise
        self._has_gate = has_gate
        self._columns: dict[str, list] = {name: [] for name in ("tokens", "sources", "p_defer", "threshold", "calls")}
        self._risk, self._risks, self._keeps_evidence = risk, list[float](), keeps_evidence
        if risk is not None or keeps_evidence:
            self._columns["evidence"] = []
        self._reported, self._handed_on = 0, 0.0  # tokens, and the risk that the next one takes over
        stops, stop_ids = request.settings.stops, request.settings.stop_token_ids or ()
        self._text = None if token_bytes is None else GeneratedText(token_bytes, request.prompt, stops, stop_ids)
        self._watched = request.stream or bool(stops)  # the text is needed before the end

    @property
    def position(self) -> int:
        """Of the first token whose decision is not read yet."""
        return len(self.request.prompt) + len(self._columns["calls"])

    def extend(self, columns: dict[str, np.ndarray], written: int) -> None:
        """Append decided tokens.

        Args:
          columns: an array for each column, of the tokens from `position` on.
          written: how many of them are part of the text: all, or all but an end-of-text token.
        """
        for name, values in columns.items():
            self._columns[name] += (values if name == "calls" else values[:written]).tolist()
        if self._text is not None and self._watched:
            self._text.extend(columns["tokens"][:written].tolist())

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._watched and self._text is not None and self._text.stopped

    def update(self, reason: str | None) -> Update | None:
        """Return what is new since the last call; None where there is nothing to report.

        Args:
          reason: why the sequence ended; None: it has not.
        """
        text, columns, generation = self._text, self._columns, None
        if reason is not None and text is not None:
            if not self._watched:
                text.extend(columns["tokens"])
            text.finish()
        if reason is not None:
            count = len(columns["tokens"])
            if text is not None and text.stopped:
                count, reason = len(text.pieces), "stop"
            risks = self._read_risks()
            generation = Generation(
                prompt_ids=list(self.request.prompt),
                text="" if text is None else text.text,
                tokens=columns["tokens"][:count],
                sources=columns["sources"][:count],
                p_defer=columns["p_defer"][:count] if self._has_gate else None,
                threshold=columns["threshold"][:count],
                finish_reason=reason,
                expert_calls=sum(columns["calls"][: count + (reason == "eos")]),
                sample=self.request.sample,
                guesses=self.guesses,
                hits=self.hits,
                lost=tuple(number for number in self.lost if number <= count),
                sent=self.sent,
                risk=None if self._risk is None or not count else self._risk.of_answer(self._evidence(0)[:count]),
                risks=None if risks is None else risks[:count],
                check=self._marks(count),
                evidence=self._evidence(0)[:count] if self._keeps_evidence else None,
            )
        tokens = self._settled() if self.request.stream else []
        return Update(self.number, tokens, generation) if tokens or generation is not None else None

    def _evidence(self, first: int) -> np.ndarray:
        """Return the evidence of the tokens from `first` on, [N, E]."""
        return np.array(self._columns["evidence"][first:], np.float32).reshape(-1, len(EVIDENCE))

    def _read_risks(self) -> list[float] | None:
        """Return the risk at each token so far."""
        if self._risk is None:
            return None
        before = self._risks[-1] if self._risks else 0.0
        self._risks += self._risk.of(self._evidence(len(self._risks)), before).tolist()
        return self._risks

    def _marks(self, count: int) -> tuple[Mark, ...] | None:
        """Return the parts of the text of the first `count` tokens that are to be checked."""
        if self._risk is None or self._text is None:
            return None
        pieces = cut(self._text.pieces[:count], len(self._text.text))
        return marks(pieces, shown(pieces, self._risks[: len(pieces)]), self._risk.mark_above)

    def _settled(self) -> list[Token]:
        """Return the tokens to report: those whose text no later token can change."""
        text, columns, first = self._text, self._columns, self._reported
        self._reported = len(columns["tokens"]) if text is None else text.settled()
        risks = self._read_risks()
        new = range(first, self._reported)
        pieces = [""] * len(new) if text is None else [text.pieces[i] for i in new]
        checks: list[float | None] = [None] * len(new)
        if risks is not None and self._risk is not None and text is not None and new:
            seen = shown(pieces, risks[first : self._reported], self._handed_on)
            self._handed_on = handed_on(pieces[-1], seen[-1])
            checks = [risk if risk > self._risk.mark_above else None for risk in seen]
        return [
            Token(
                token=columns["tokens"][i],
                source=columns["sources"][i],
                p_defer=columns["p_defer"][i] if self._has_gate else None,
                threshold=columns["threshold"][i],
                text=piece,
                calls=columns["calls"][i],
                risk=None if risks is None else risks[i],
                check=check,
            )
            for i, piece, check in zip(new, pieces, checks)
        ]
