"""What the gate learned: which tokens of written answers an expert wrote, and how p_defer stands to responsibilities.

Plain sequences in, plain figures out; `report` shows them. A token is deferred where an expert wrote it.
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
from colm_jax.team import Scored

CLASSES = ("number", "operator or punctuation", "word start", "word continuation", "white space")
POSITIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # where bins begin, in tokens from the answer's first
ENTROPIES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0)  # likewise, in nats


@dataclass(frozen=True)
class Written:
    """An answer as this module reads it; sequences have an entry per written token."""

    pieces: Sequence[str]  # the text that each token added
    sources: Sequence[int]  # 0 the base, 1..M an expert
    p_defer: Sequence[float] | None = None
    entropy: Sequence[float] | None = None  # of the base's distribution, nats


@dataclass(frozen=True)
class Share:
    """Of the tokens of one kind."""

    name: str
    tokens: int
    deferred: int
    mean_p_defer: float | None  # None without a gate

    @property
    def rate(self) -> float | None:
        """Share of deferred tokens; None where there are no tokens."""
        return self.deferred / self.tokens if self.tokens else None


@dataclass(frozen=True)
class Found:
    """A place in an answer: tokens start..stop-1 of answer number `answer`, all by experts."""

    answer: int
    start: int
    stop: int


def token_classes(pieces: Sequence[str]) -> list[str]:
    """The class of each token, one of CLASSES, by its text and what stands before it.

    A token with a letter is a word's start or its continuation, one with a digit and no letter a number, one with
    neither an operator or punctuation. A piece without text (a byte of a character that a later token completes)
    counts as a continuation.
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


def by_class(answers: Sequence[Written]) -> list[Share]:
    """Deferral by token class."""
    return _shares(answers, [token_classes(answer.pieces) for answer in answers], CLASSES)


def by_position(answers: Sequence[Written]) -> list[Share]:
    """Deferral by place in the answer, in bins that double."""
    longest = max((len(answer.pieces) for answer in answers), default=0)
    names = [f"{low}" if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(POSITIONS)]
    names += [f"{POSITIONS[-1]}–"]
    kinds = [[names[_bin(i, POSITIONS)] for i in range(len(answer.pieces))] for answer in answers]
    return _shares(answers, kinds, names[: sum(low < longest for low in POSITIONS)])


def by_entropy(answers: Sequence[Written]) -> list[Share]:
    """Deferral by the base's entropy, nats; of the answers for which it is known."""
    names = [f"{low:g}–{high:g}" for low, high in pairwise(ENTROPIES)] + [f"{ENTROPIES[-1]:g}–"]
    known = [answer for answer in answers if answer.entropy is not None]
    kinds = [[names[_bin(max(0.0, h), ENTROPIES)] for h in answer.entropy or ()] for answer in known]
    return _shares(known, kinds, names)


def template_fillings(answers: Sequence[Written]) -> list[Found]:
    """Where experts wrote a single token of content, a whole number or word, between two tokens of the base's."""
    found = []
    for a, answer in enumerate(answers):
        classes = token_classes(answer.pieces)
        for start, stop in _runs(answer.sources):
            inside = start > 0 and stop < len(answer.sources)
            if stop - start == 1 and inside and _is_whole(answer.pieces, classes, start):
                found.append(Found(a, start, stop))
    return found


def calculator_calls(answers: Sequence[Written]) -> list[Found]:
    """Where experts wrote the digits right behind an equals sign of the base's; all of the result's digits by experts.

    The base may write white space, a sign or a currency mark between the two.
    """
    return [found for found in results(answers) if all(answers[found.answer].sources[found.start : found.stop])]


def results(answers: Sequence[Written]) -> list[Found]:
    """The tokens of every number right behind an equals sign of the base's, whoever wrote them.

    A number that an operator follows is part of a further calculation (the first 5 in 5^2 · 5^3 = 5^5), not a result.
    """
    found = []
    for a, answer in enumerate(answers):
        classes = token_classes(answer.pieces)
        stop = 0
        for i, kind in enumerate(classes):
            if i < stop or kind != "number" or not _behind_equals(answer, i):
                continue
            stop = _number_end(answer.pieces, classes, i)
            if not re.match(r"\s*[-−+·×*/÷^(=]", "".join(answer.pieces[stop : stop + 2])):
                found.append(Found(a, i, stop))
    return found


@dataclass(frozen=True)
class Agreement:
    """Responsibilities of the experts, 1 − r_0, against p_defer, at the positions that count."""

    counts: tuple[tuple[int, ...], ...]  # [bins of p_defer][bins of 1 − r_0]
    mean_p_defer: tuple[float | None, ...]  # by bin of p_defer; None where it is empty
    mean_responsibility: tuple[float | None, ...]  # likewise
    correlation: float | None  # Pearson's; None where one of them does not vary

    @property
    def bins(self) -> int:
        """Of equal width, from 0 to 1."""
        return len(self.counts)


def agreement(scored: Sequence[Scored], bins: int = 5) -> Agreement | None:
    """How far the gate foresees who will turn out to explain the token; None without a gate.

    The gate sees the text before a token; the responsibility, its posterior, the token too (DESIGN section 1). On
    texts like those trained on, a gate at the optimum has mean responsibility = mean p_defer in every bin of p_defer
    that its features can tell apart.
    """
    if not scored or any(s.gate_logits is None for s in scored):
        return None
    logits = np.concatenate([s.gate_logits[s.mask] for s in scored if s.gate_logits is not None])
    base = np.concatenate([s.base_log_prob[s.mask] for s in scored])
    experts = np.concatenate([s.expert_log_probs[s.mask] for s in scored])
    return agreement_of(logits, base, experts, bins)


def agreement_of(
    logits: Float[np.ndarray, "n M"], base: Float[np.ndarray, "n"], experts: Float[np.ndarray, "n M"], bins: int = 5
) -> Agreement:
    """`agreement` from the gate's logits and each model's log-probability of the text's own token."""
    arguments = logits, base, experts, np.ones(len(logits), bool)
    posterior = np.asarray(responsibilities(*(jnp.asarray(a)[None] for a in arguments)))[0]
    taken, prior = 1 - posterior[:, 0].astype(np.float64), np.asarray(p_defer(jnp.asarray(logits)), np.float64)
    rows, columns = (np.clip((x * bins).astype(int), 0, bins - 1) for x in (prior, taken))
    counts = np.zeros((bins, bins), np.int64)
    np.add.at(counts, (rows, columns), 1)

    def means(x: np.ndarray) -> tuple[float | None, ...]:
        return tuple(float(x[rows == b].mean()) if (rows == b).any() else None for b in range(bins))

    varies = len(prior) > 1 and min(prior.std(), taken.std()) > 0
    return Agreement(
        counts=tuple(tuple(row) for row in counts.tolist()),
        mean_p_defer=means(prior),
        mean_responsibility=means(taken),
        correlation=float(np.corrcoef(prior, taken)[0, 1]) if varies else None,
    )


def _shares(answers: Sequence[Written], kinds: Sequence[Sequence[str]], names: Sequence[str]) -> list[Share]:
    """Counts by kind, in the order of `names`."""
    tokens, deferred = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for answer, kind in zip(answers, kinds, strict=True):
        for i, (name, source) in enumerate(zip(kind, answer.sources, strict=True)):
            tokens[name] += 1
            deferred[name] += source > 0
            if answer.p_defer is not None:
                rates[name].append(answer.p_defer[i])
    return [
        Share(name, tokens[name], deferred[name], float(np.mean(rates[name])) if rates[name] else None)
        for name in names
    ]


def _bin(value: float, edges: Sequence[float]) -> int:
    """The last bin that begins at or below the value."""
    return sum(edge <= value for edge in edges) - 1


def _runs(sources: Sequence[int]) -> list[tuple[int, int]]:
    """Experts' runs of tokens, as start and end."""
    borders = np.flatnonzero(np.diff([0, *(int(source > 0) for source in sources), 0]))
    return [(int(start), int(stop)) for start, stop in borders.reshape(-1, 2)]


def _is_whole(pieces: Sequence[str], classes: Sequence[str], i: int) -> bool:
    """Whether token i, with tokens on both sides, is a number or a word by itself, not a part of one."""
    if classes[i] not in ("number", "word start"):
        return False
    begins = pieces[i][0].isspace() or not pieces[i - 1][-1:].isalnum()
    ends = pieces[i][-1].isspace() or not pieces[i + 1][:1].isalnum()
    return begins and ends


def _number_end(pieces: Sequence[str], classes: Sequence[str], start: int) -> int:
    """Where the number that begins with token `start` ends; its digits may be parted by a point or a comma."""

    def goes_on(i: int) -> bool:
        return i < len(pieces) and classes[i] == "number" and pieces[i][0].isdigit()

    stop = start + 1
    while goes_on(stop) or (stop < len(pieces) and pieces[stop] in (".", ",") and goes_on(stop + 1)):
        stop += 1
    return stop


def _behind_equals(answer: Written, i: int) -> bool:
    """Whether token i follows an equals sign that the base wrote, with at most a sign or currency mark between."""
    if re.match(r"\s*[$€£(]*[-−+]?\d", answer.pieces[i]) is None:
        return False
    for j in range(i - 1, -1, -1):
        text = answer.pieces[j].strip()
        if text.endswith("="):
            return answer.sources[j] == 0
        if re.fullmatch(r"[$€£(]*[-−+]?", text) is None:
            return False
    return False
