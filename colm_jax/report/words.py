"""Words of an answer, as the report shows them; a token may be part of a word or span several."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from colm_jax.report.contents import Piece


@dataclass(frozen=True)
class Word:
    """A word and the white space before it; all words joined are the whole text."""

    space: tuple[Piece, ...]  # white space, as parts of tokens
    pieces: tuple[Piece, ...]  # the word, as at most one part per token; empty for trailing white space

    @property
    def text(self) -> str:
        """The word without the white space before it."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def sources(self) -> frozenset[int]:
        """The writers of the word: 0 the base, 1..M an expert."""
        return frozenset(piece.source for piece in self.pieces)

    @property
    def mean_p_defer(self) -> float | None:
        """The mean over the word's tokens; None without a gate."""
        rates = [piece.p_defer for piece in self.pieces if piece.p_defer is not None]
        return sum(rates) / len(rates) if rates else None

    @property
    def check(self) -> bool:
        """Whether one of its tokens is marked to be checked."""
        return any(piece.check for piece in self.pieces)

    @property
    def risk(self) -> float | None:
        """The largest risk of its tokens and of the white space before it; None where the team has not learned any."""
        return max((piece.risk for piece in (*self.space, *self.pieces) if piece.risk is not None), default=None)


def words(pieces: Sequence[Piece]) -> list[Word]:
    """Group tokens into words, splitting tokens at white space.

    A token without text (a byte of a character that a later token completes) belongs to the word around it.
    """
    groups: list[tuple[list[Piece], list[Piece]]] = []
    for piece in pieces:
        for text in re.findall(r"\s+|\S+", piece.text) or [""]:
            part = replace(piece, text=text)
            if not groups or (text.isspace() and groups[-1][1]):
                groups.append(([], []))
            groups[-1][0 if text.isspace() else 1].append(part)
    return [Word(tuple(space), tuple(word)) for space, word in groups]


def writers_of(word: Word, writers: Sequence[str]) -> str:
    """Return a line with the names of a word's writers and, with a gate, its mean p_defer."""
    names = "written by " + " + ".join(writers[source] for source in sorted(word.sources))
    mean = word.mean_p_defer
    return names if mean is None else f"mean p_defer {mean:.3f} · {names}"
