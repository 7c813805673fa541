"""Analysis of a trained gate: which tokens of answers are deferred, and how p_defer agrees with responsibilities.

Input and output are plain sequences and numbers; `report` shows them. A token is deferred if an expert wrote it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from colm_jax.models.gate import p_defer
from colm_jax.objectives import responsibilities
from colm_jax.scoring.texts import Scored

CLASSES = ("number", "operator or punctuation", "word start", "word continuation", "white space")
POSITIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # lower edges of bins, in tokens from the answer's first
ENTROPIES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0)  # lower edges of bins, in nats


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of an answer; sequences have one entry per token."""

    pieces: Sequence[str]  # the text of each token
    sources: Sequence[int]  # 0 the base, 1..M an expert
    p_defer: Sequence[float] | None = None
    entropy: Sequence[float] | None = None  # of the base's distribution, nats


@dataclass(frozen=True)
class DeferralRate:
    """Deferral of the tokens of one kind."""

    name: str  # of the kind
    tokens: int
    deferred: int
    mean_p_defer: float | None  # None without a gate

    @property
    def rate(self) -> float | None:
        """The share of deferred tokens; None if there are no tokens."""
        return self.deferred / self.tokens if self.tokens else None


@dataclass(frozen=True)
class TokenSpan:
    """Tokens start..stop-1 of answer number `answer`."""

    answer: int
    start: int
    stop: int


def token_classes(pieces: Sequence[str]) -> list[str]:
    """Return the class of each token, one of CLASSES, by its text and the text before it.

    A token with a letter is a word start or continuation, a token with a digit but no letter a number, any other an
    operator or punctuation. A token without text (a byte of a character that a later token completes) counts as a
    continuation.
    """
    found = []
    before = ""
    for piece in pieces:
        text = piece.strip()
        if any(character.isalpha() for character in text):
            inside = not piece[0].isspace() and before[-1:].isalnum()
            found.append("word continuation" if inside else "word start")
        elif any(character.isdigit() for character in text):
            found.append("number")
        elif text:
            found.append("operator or punctuation")
        else:
            found.append("white space" if piece else "word continuation")
        before = piece or before
    return found


def by_class(answers: Sequence[AnswerTokens]) -> list[DeferralRate]:
    """Return deferral by token class."""
    return _shares(answers, [token_classes(answer.pieces) for answer in answers], CLASSES)


def by_position(answers: Sequence[AnswerTokens]) -> list[DeferralRate]:
    """Return deferral by position in the answer, in bins of doubling width."""
    longest = max((len(answer.pieces) for answer in answers), default=0)
    names = [f"{low}" if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(POSITIONS)]
    names += [f"{POSITIONS[-1]}–"]
    kinds = [[names[_bin(i, POSITIONS)] for i in range(len(answer.pieces))] for answer in answers]
    return _shares(answers, kinds, names[: sum(low < longest for low in POSITIONS)])


def by_entropy(answers: Sequence[AnswerTokens]) -> list[DeferralRate]:
    """Return deferral by the base's entropy in nats, over the answers with known entropies."""
    names = [f"{low:g}–{high:g}" for low, high in pairwise(ENTROPIES)] + [f"{ENTROPIES[-1]:g}–"]
    known = [answer for answer in answers if answer.entropy is not None]
    kinds = [[names[_bin(max(0.0, h), ENTROPIES)] for h in answer.entropy or ()] for answer in known]
    return _shares(known, kinds, names)


def template_fillings(answers: Sequence[AnswerTokens]) -> list[TokenSpan]:
    """Return the single tokens by experts, each a whole number or word, between two tokens by the base."""
    found = []
    for a, answer in enumerate(answers):
        classes = token_classes(answer.pieces)
        for start, stop in _runs(answer.sources):
            inside = start > 0 and stop < len(answer.sources)
            if stop - start == 1 and inside and _is_whole(answer.pieces, classes, start):
                found.append(TokenSpan(a, start, stop))
    return found


def calculator_calls(answers: Sequence[AnswerTokens]) -> list[TokenSpan]:
    """Return the results (see `results`) whose digits were all written by experts."""
    return [found for found in results(answers) if all(answers[found.answer].sources[found.start : found.stop])]


def results(answers: Sequence[AnswerTokens]) -> list[TokenSpan]:
    """Return the tokens of every number right after an equals sign that the base wrote.

    White space, a sign or a currency mark may be in between. A number that an operator follows is part of a further
    calculation (the first 5 in 5^2 · 5^3 = 5^5), not a result.
    """
    found = []
    for a, answer in enumerate(answers):
        classes = token_classes(answer.pieces)
        stop = 0
        for i, kind in enumerate(classes):
            if i < stop or kind != "number" or not _after_equals(answer, i):
                continue
            stop = _number_end(answer.pieces, classes, i)
            if not re.match(r"\s*[-−+·×*/÷^(=]", "".join(answer.pieces[stop : stop + 2])):
                found.append(TokenSpan(a, i, stop))
    return found


@dataclass(frozen=True)
class Agreement:
    """The experts' responsibility, 1 − r_0, against p_defer, at the counted positions."""

    counts: tuple[tuple[int, ...], ...]  # [bins of p_defer][bins of 1 − r_0]
    mean_p_defer: tuple[float | None, ...]  # by bin of p_defer; None for an empty bin
    mean_responsibility: tuple[float | None, ...]  # likewise
    correlation: float | None  # Pearson's; None if either is constant

    @property
    def bins(self) -> int:
        """The number of bins, of equal width from 0 to 1."""
        return len(self.counts)


def agreement(scored: Sequence[Scored], bins: int = 5) -> Agreement | None:
    """Compare the gate's prior with its posterior; None without a gate.

    p_defer depends on the text before a token; the responsibility, its posterior, on the token as well. On texts from
    the training distribution, an optimal gate has mean responsibility = mean p_defer in every bin of p_defer that its
    features can separate.
    """
    if not scored or any(s.gate_logits is None for s in scored):
        return None
    logits = np.concatenate([found for s in scored if (found := s.unit_gate_logits) is not None])
    models = np.concatenate([s.unit_log_probs for s in scored])
    return agreement_of(logits, models[:, 0], models[:, 1:], bins)


def agreement_of(
    logits: Float[np.ndarray, "n M"], base: Float[np.ndarray, "n"], experts: Float[np.ndarray, "n M"], bins: int = 5
) -> Agreement:
    """Compute `agreement` from the gate's logits and each model's log-probability of the text's own token."""
    arguments = logits, base, experts, np.ones(len(logits), bool)
    posterior = np.asarray(responsibilities(*(jnp.asarray(a)[None] for a in arguments)))[0]
    posterior_defer, prior = (
        1 - posterior[:, 0].astype(np.float64),
        np.asarray(p_defer(jnp.asarray(logits)), np.float64),
    )
    rows, columns = (np.clip((x * bins).astype(int), 0, bins - 1) for x in (prior, posterior_defer))
    counts = np.zeros((bins, bins), np.int64)
    np.add.at(counts, (rows, columns), 1)

    def means(x: np.ndarray) -> tuple[float | None, ...]:
        return tuple(float(x[rows == b].mean()) if (rows == b).any() else None for b in range(bins))

    varies = len(prior) > 1 and min(prior.std(), posterior_defer.std()) > 0
    return Agreement(
        counts=tuple(tuple(row) for row in counts.tolist()),
        mean_p_defer=means(prior),
        mean_responsibility=means(posterior_defer),
        correlation=float(np.corrcoef(prior, posterior_defer)[0, 1]) if varies else None,
    )


def _shares(
    answers: Sequence[AnswerTokens], kinds: Sequence[Sequence[str]], names: Sequence[str]
) -> list[DeferralRate]:
    """Count the tokens of each kind, in the order of `names`."""
    tokens, deferred = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for answer, kind in zip(answers, kinds, strict=True):
        for i, (name, source) in enumerate(zip(kind, answer.sources, strict=True)):
            tokens[name] += 1
            deferred[name] += source > 0
            if answer.p_defer is not None:
                rates[name].append(answer.p_defer[i])
    return [
        DeferralRate(name, tokens[name], deferred[name], float(np.mean(rates[name])) if rates[name] else None)
        for name in names
    ]


def _bin(value: float, edges: Sequence[float]) -> int:
    """Return the last bin whose lower edge is at most the value."""
    return sum(edge <= value for edge in edges) - 1


def _runs(sources: Sequence[int]) -> list[tuple[int, int]]:
    """Return the runs of consecutive tokens by experts, as start and stop."""
    borders = np.flatnonzero(np.diff([0, *(int(source > 0) for source in sources), 0]))
    return [(int(start), int(stop)) for start, stop in borders.reshape(-1, 2)]


def _is_whole(pieces: Sequence[str], classes: Sequence[str], i: int) -> bool:
    """Return whether token i, with tokens on both sides, is a whole number or word."""
    if classes[i] not in ("number", "word start"):
        return False
    begins = pieces[i][0].isspace() or not pieces[i - 1][-1:].isalnum()
    ends = pieces[i][-1].isspace() or not pieces[i + 1][:1].isalnum()
    return begins and ends


def _number_end(pieces: Sequence[str], classes: Sequence[str], start: int) -> int:
    """Return the end of the number that begins with token `start`; a point or comma may separate its digits."""

    def continues(i: int) -> bool:
        return i < len(pieces) and classes[i] == "number" and pieces[i][0].isdigit()

    stop = start + 1
    while continues(stop) or (stop < len(pieces) and pieces[stop] in (".", ",") and continues(stop + 1)):
        stop += 1
    return stop


def _after_equals(answer: AnswerTokens, i: int) -> bool:
    """Return whether token i follows an equals sign by the base, with at most a sign or currency mark in between."""
    if re.match(r"\s*[$€£(]*[-−+]?\d", answer.pieces[i]) is None:
        return False
    for j in range(i - 1, -1, -1):
        text = answer.pieces[j].strip()
        if text.endswith("="):
            return answer.sources[j] == 0
        if re.fullmatch(r"[$€£(]*[-−+]?", text) is None:
            return False
    return False
