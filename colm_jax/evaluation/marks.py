"""How good marks that say where to check are: as detectors of wrong answers, and of the place where they go wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Judged:
    """An answer with a score at each token, higher where it is more likely to go wrong."""

    pieces: Sequence[str]  # the text of each token
    scores: Sequence[float]
    right: bool
    reference: str | None = None  # a right text in the same words


def rank_area(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Return the area under the ROC curve: how often a positive has a higher score than a negative, ties half.

    None if either class is empty.
    """
    is_positive, count = np.array(positive, bool), int(np.sum(positive))
    if not 0 < count < len(is_positive):
        return None
    ranks = rankdata(np.asarray(scores, np.float64))
    return float((ranks[is_positive].sum() - count * (count + 1) / 2) / (count * (len(is_positive) - count)))


def departure(pieces: Sequence[str], reference: str) -> int | None:
    """Return the number of the first token at which a text departs from a reference; None where it never does."""
    place = 0
    for number, piece in enumerate(pieces):
        if piece and not reference.startswith(piece, place):
            return number
        place += len(piece)
    return None


def words_of(pieces: Sequence[str]) -> list[int]:
    """Return the number of the word that each token begins in, or ends where it begins with white space."""
    numbers, word, after_space = [], 0, True
    for piece in pieces:
        text = piece.lstrip()
        if text and (len(text) < len(piece) or after_space):
            word += 1
        numbers.append(word)
        word += len(text.split()) - 1 if text else 0
        after_space = piece[-1:].isspace() if piece else after_space
    return numbers


def places_found(answers: Sequence[Judged], most: int) -> tuple[int, int]:
    """Return how many wrong answers have the word at which they depart from their reference among their `most` words of
    the highest scores, and how many wrong answers depart from it at all.
    """
    found = known = 0
    for answer in answers:
        place = None if answer.right or answer.reference is None else departure(answer.pieces, answer.reference)
        if place is None:
            continue
        known += 1
        words = words_of(answer.pieces)
        highest: dict[int, float] = {}
        for word, score in zip(words, answer.scores, strict=True):
            highest[word] = max(score, highest.get(word, -np.inf))
        found += words[place] in sorted(highest, key=lambda word: -highest[word])[:most]
    return found, known


def mark_figures(risks: Sequence[float], marked: Sequence[bool], grades: Sequence[float]) -> dict[str, Any]:
    """Return figures of marks as a detector of wrong answers.

    Args:
      risks: the probability that each answer is wrong.
      marked: whether any part of it is marked.
      grades: of each answer, from 0, wrong, to 1, right.

    Returns:
      "auroc" of the risks, None if all answers are right or all are wrong; "brier" of them; "mean_risk" and "wrong",
      the share of wrong answers, which a calibrated risk equals; "wrong_marked" and "right_marked", the shares of wrong
      and of right answers with a mark.
    """
    wrong = np.array(grades, np.float64) < 0.5
    own, has_mark = np.array(risks, np.float64), np.array(marked, bool)

    def share(of: np.ndarray) -> float | None:
        return float(has_mark[of].mean()) if of.any() else None

    return {
        "auroc": rank_area(risks, wrong.tolist()),
        "brier": float(((own - wrong) ** 2).mean()),
        "mean_risk": float(own.mean()),
        "wrong": float(wrong.mean()),
        "wrong_marked": share(wrong),
        "right_marked": share(~wrong),
    }
