"""ROUGE-2 and ROUGE-SU4, as BioASQ grades its ideal answers.

Words are runs of letters and digits in lower case, unstemmed. (The package rouge-score has ROUGE-2, which tests hold
ours to, but no skip-bigrams, and brings NLTK.)
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

_GAP = 4  # words between the two of a skip-bigram, at most


@dataclass(frozen=True)
class Overlap:
    """How much of two texts is shared."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Their harmonic mean; 0 where nothing is shared."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _bigrams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    yield from pairwise(words)


def _skips(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Pairs of words in order with at most _GAP between them, and single words."""
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
    """ROUGE-2 with the reference, of one or more, that it is nearest to by F1."""
    return _best(prediction, references, _bigrams)


def rouge_su4(prediction: str, references: Sequence[str]) -> Overlap:
    """ROUGE-SU4, likewise: skip-bigrams over at most 4 words, and unigrams."""
    return _best(prediction, references, _skips)
