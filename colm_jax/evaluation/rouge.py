"""ROUGE-2 and ROUGE-SU4, by which BioASQ grades ideal answers.

Words are runs of letters and digits in lower case, unstemmed. (The package rouge-score has ROUGE-2, which tests compare
with, but no skip-bigrams, and it depends on NLTK.)
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

_GAP = 4  # most words between the two of a skip-bigram


@dataclass(frozen=True)
class Overlap:
    """The overlap of two texts."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 0 without overlap."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _bigrams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    yield from pairwise(words)


def _skips(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield pairs of words in order with at most _GAP words between them, and single words."""
    for i, word in enumerate(words):
        yield (word,)
        yield from ((word, other) for other in words[i + 1 : i + 2 + _GAP])


def _overlap(prediction: Counter, reference: Counter) -> Overlap:
    shared = (prediction & reference).total()
    return Overlap(shared / prediction.total() if prediction else 0.0, shared / reference.total() if reference else 0.0)


def _best(prediction: str, references: Sequence[str], units) -> Overlap:
    counted = Counter(units(_words(prediction)))
    return max((_overlap(counted, Counter(units(_words(text)))) for text in references), key=lambda found: found.f1)


def rouge_2(prediction: str, references: Sequence[str]) -> Overlap:
    """Return ROUGE-2 with the closest of one or more references, by F1."""
    return _best(prediction, references, _bigrams)


def rouge_su4(prediction: str, references: Sequence[str]) -> Overlap:
    """Return ROUGE-SU4 (skip-bigrams over at most 4 words, and unigrams) with the closest reference, by F1."""
    return _best(prediction, references, _skips)
