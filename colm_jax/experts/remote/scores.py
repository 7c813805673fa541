"""From an endpoint's log-probabilities of a prompt's tokens to scores of spans.

Tokens are mapped to characters by their texts, from the end. A token that lies over the boundary of two spans (or over
the seam of prompt and answer) is shared among them in proportion to its characters. So the sum over a text is that of
its tokens, and none of the spans is free: a span with the whole of the token's log-probability beside one with none
would make the second look certain, and teach the gate to call the expert there. (Where the token lies over the seam,
the prompt's share is left out.)

The opening mass of a boundary needs the whole distribution. An endpoint tells the likeliest tokens, so it is bounded
from above by 1 less the mass of those among them that would not open a span, and from below by the text's own token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from colm_jax.experts.protocol import UnitScores
from colm_jax.experts.remote.answers import UNKNOWN, Malformed, TokenScore

Opens = Callable[[str, str], bool]  # `SpanRule.opens`


@dataclass(frozen=True)
class PromptScores:
    """What an endpoint says of a prompt."""

    tokens: tuple[TokenScore, ...]  # those before the text, too
    following: TokenScore | None  # of the position after the last one; None: unknown


def spell(tokens: Sequence[str], text: str) -> list[tuple[int, int]] | None:
    """Return start and end of each token in a text, which is all of the tokens or their end.

    Tokens before the text have (0, 0); one that begins before it has a negative start. Tokens that hold parts of
    characters cover what the readable ones around them leave.

    Returns:
      None if the tokens do not spell the text.
    """
    places, unread, place = [(0, 0)] * len(tokens), list[int](), len(text)
    for number in range(len(tokens) - 1, -1, -1):
        if place == 0 and not unread:
            break
        token = tokens[number]
        if not token or UNKNOWN in token:
            unread.append(number)
            continue
        end = _end(token, text, place, [tokens[i] for i in unread])
        if end is None:
            return None
        for i in unread:
            places[i] = end, place
        unread, place = [], max(end - len(token), 0)
        places[number] = end - len(token), end
    if place and not unread:
        return None
    for i in unread:
        places[i] = 0, place
    return places


def _end(token: str, text: str, place: int, unread: Sequence[str]) -> int | None:
    """Return where a token ends, before `place` and the unreadable tokens between; None: it does not fit."""
    reach = sum(max(len(other), 1) for other in unread)
    nearest = place - 1 if any(UNKNOWN in other for other in unread) else place
    for end in range(nearest, max(place - reach, 0) - 1, -1):
        fits = text.endswith(token, 0, end) if end >= len(token) else end > 0 and token.endswith(text[:end])
        if fits or (end == 0 and unread):
            return end
    return None


@dataclass(frozen=True)
class SpanText:
    """A text as it was sent, and where its spans are in it."""

    text: str
    edges: tuple[float, ...]  # [N+1] where spans begin, and the end of the last; no whole number within a pseudonym
    uncounted: bool  # the first span does not count: it may have nothing before it
    finished: bool  # an end of text follows


def span_scores(scores: PromptScores, text: SpanText, opens: Opens) -> UnitScores:
    """Return the scores of the spans that count.

    Args:
      scores: of the tokens; those of the text are the last ones.
      text: the part of what was sent that the spans are in.
      opens: whether a new span begins between two texts.

    Raises:
      Malformed: the tokens do not spell the text, or one that counts has no log-probability.
    """
    places = spell([token.text for token in scores.tokens], text.text)
    if places is None:
        raise Malformed("the tokens of the answer do not spell the text that was sent")
    count = len(text.edges) - 1
    log_prob, greedy = np.zeros(count, np.float64), np.ones(count, bool)
    openings = [_Opening.unknown()] * (count + 1)
    ahead = {edge: k for k, edge in enumerate(text.edges[:-1]) if k}  # boundaries at which no token has begun yet
    for token, (start, end) in zip(scores.tokens, places):
        shares = _shares(text.edges, start, end) if end > 0 else {}  # those before the text are in no span
        if token.log_prob is None and any(k or not text.uncounted for k in shares):
            raise Malformed("a token that counts has no log-probability")
        opened = ahead.pop(start, None) if shares else None
        if opened is not None:
            openings[opened] = _Opening.of(token, text.text[start - 1], opens)
        for k, share in shares.items():
            log_prob[k] += (token.log_prob or 0.0) * share
            greedy[k] &= token.is_argmax if opened is None else openings[opened].chooses(token)
    if scores.following is not None and text.text:
        openings[count] = _Opening.of(scores.following, text.text[-1], opens)
    for k in range(count):
        closes = openings[k + 1] if k + 1 < count or text.finished else _Opening.unknown()
        log_prob[k] += closes.log_mass - openings[k].log_mass
        greedy[k] &= closes.open
    first = int(text.uncounted)
    return UnitScores(log_prob[first:].astype(np.float32), greedy[first:])


def _shares(edges: Sequence[float], start: int, end: int) -> dict[int, float]:
    """Return the share of a token, from `start` to `end`, that lies in each span; one without a width is in one."""
    spans = list(enumerate(pairwise(edges)))
    if start == end:
        return {k: 1.0 for k, (a, b) in spans if a <= start < b}
    return {k: (min(b, end) - max(a, start)) / (end - start) for k, (a, b) in spans if a < end and b > start}


@dataclass(frozen=True)
class _Opening:
    """What is known of the distribution at a boundary."""

    log_mass: float  # upper bound of the logarithm of the opening mass
    open: bool  # the likeliest token opens a span, or ends the text
    best: float  # log-probability of the likeliest opening token

    @classmethod
    def unknown(cls) -> "_Opening":
        """Return that of a place where no token begins, or which nothing is known about."""
        return cls(0.0, True, -math.inf)

    @classmethod
    def of(cls, token: TokenScore, left: str, opens: Opens) -> "_Opening":
        """Return that at a token which follows the character `left`, and opens a span.

        Tokens without text end the text, or hold a part of a character: they are not known not to open.
        """
        within = [p for text, p in token.top if text and UNKNOWN not in text and not opens(left, text)]
        others = [p for text, p in token.top if not (text and UNKNOWN not in text and not opens(left, text))]
        own = -math.inf if token.log_prob is None else token.log_prob
        mass = max(1.0 - sum(map(math.exp, within)), math.exp(own), 1e-30)
        best = max(others, default=-math.inf)
        return cls(math.log(min(mass, 1.0)), max(best, own) >= max(within, default=-math.inf), max(best, own))

    def chooses(self, token: TokenScore) -> bool:
        """Return whether a token is the likeliest of those that open a span."""
        return token.log_prob is not None and token.log_prob >= self.best
