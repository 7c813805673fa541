"""Spans: the parts of a text that models with different tokenizers write in turn.

A *stable boundary* is a place where every tokenizer splits, whatever follows. It is found from two characters, the last
before it and the first after it, so that it is known while a text is written. A *span* is what lies between
neighbouring boundaries. White space belongs to the span after it; numbers, and words outside scripts without spaces,
are not cut.

`SpanRule` knows the boundaries of texts, `Opening` the same for a model's tokens: which of them would open a new span
after which.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer as Backend

from colm_jax.models.arrays import AnyArray, pytree
from colm_jax.text.tokenizer import Tokenizer

METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space so
_APOSTROPHES = frozenset("'\N{RIGHT SINGLE QUOTATION MARK}")
_SEPARATORS = frozenset(".,")  # of digits
# Beginnings of the Unicode names of letters in scripts that are written without spaces between words.
_NO_SPACES = ("CJK ", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "YI ")
# What stands before a text that is encoded apart, where a tokenizer would add a space in front: a private-use
# character, which no token joins with others, or a line break where the two are unknown alike.
_GUARDS = ("\ue000", "\n")
# Classes of characters, as the rule sees them: LETTER and IDEOGRAPH are letters, the second without spaces.
_SPACE, _LETTER, _IDEOGRAPH, _DIGIT, _SEPARATOR, _APOSTROPHE, _MARK, _OTHER = range(8)


@lru_cache(maxsize=1 << 16)
def _class_of(character: str) -> int:
    if character.isspace() or character == METASPACE:
        return _SPACE
    category = unicodedata.category(character)
    if category[0] == "M" or character in "\u200c\u200d":
        return _MARK
    if category[0] == "L":
        return _IDEOGRAPH if unicodedata.name(character, "").startswith(_NO_SPACES) else _LETTER
    if category[0] == "N":
        return _DIGIT
    if character in _SEPARATORS:
        return _SEPARATOR
    return _APOSTROPHE if character in _APOSTROPHES else _OTHER


def _classes_open() -> Bool[np.ndarray, "8 8"]:
    """Return whether a boundary may be between characters of two classes: left, right."""
    opens = np.ones((8, 8), bool)
    opens[_SPACE] = False  # it belongs to what follows
    opens[:, _MARK] = False  # it belongs to the character before it
    opens[[_LETTER, _MARK], _LETTER] = False
    for left, right in ((_DIGIT, _DIGIT), (_DIGIT, _SEPARATOR), (_SEPARATOR, _DIGIT)):
        opens[left, right] = False
    # Tokenizers split contractions by what follows the apostrophe, which is only certain after a word.
    opens[[_IDEOGRAPH, _SEPARATOR, _APOSTROPHE, _MARK, _OTHER], _APOSTROPHE] = False
    return opens


_OPENS = _classes_open()


@dataclass(frozen=True)
class SpanRule:
    """Where texts may be cut: the adjacent characters, and bytes, that some token joins are never cut.

    Example:
      >>> from colm_jax import SpanRule
      >>> rule = SpanRule(characters=frozenset(), bytes=frozenset())  # `SpanRule.of` derives one from tokenizers
      >>> text = "Janet's bill: 3,500.25 euros."
      >>> starts = rule.starts(text)
      >>> [text[start:stop] for start, stop in zip(starts, [*starts[1:], len(text)])]
      ['Janet', "'", 's', ' bill', ':', ' 3,500.25', ' euros', '.']
    """

    characters: frozenset[tuple[str, str]]
    bytes: frozenset[tuple[int, int]]  # of tokens that hold parts of characters

    @classmethod
    def of(cls, tokenizers: Sequence[Tokenizer]) -> "SpanRule":
        """Return the rule for texts that these tokenizers read."""
        characters: set[tuple[str, str]] = set()
        pairs: set[tuple[int, int]] = set()
        for tokenizer in tokenizers:
            for read in token_texts(tokenizer):
                _join(read, characters, pairs)
        return cls(frozenset(characters), frozenset(pairs))

    def opens(self, left: str, right: str) -> bool:
        """Return whether a new span begins between two texts, by the last character and the first; both have one."""
        a, b = left[-1], right[0]
        if not _OPENS[_class_of(a), _class_of(b)] or (a, b) in self.characters:
            return False
        return (a.encode("utf-8", "replace")[-1], b.encode("utf-8", "replace")[0]) not in self.bytes

    def starts(self, text: str) -> list[int]:
        """Return where spans begin in a text, the first at 0; an empty text has none."""
        return [i for i in range(len(text)) if i == 0 or self.opens(text[i - 1], text[i])]


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes that each token adds within a text; special tokens, and ids without a token, add none."""
    tokens = tokenizer.token_bytes
    return [b"" if tokens.special(i) is not None else tokens.within(i) for i in range(tokenizer.size)]


def _join(read: bytes, characters: set[tuple[str, str]], pairs: set[tuple[int, int]]) -> None:
    """Add the adjacent characters that a token joins, and the bytes where it holds parts of characters."""
    try:
        text = read.decode()
    except UnicodeDecodeError:
        parts = _characters(read)
        for left, right in pairwise(parts):
            try:
                characters.add((left.decode(), right.decode()))
            except UnicodeDecodeError:
                pairs.add((left[-1], right[0]))
    else:
        characters.update(pairwise(text))


def _characters(read: bytes) -> list[bytes]:
    """Split bytes before every byte that begins a character."""
    starts = [i for i, byte in enumerate(read) if i == 0 or byte & 0xC0 != 0x80]
    return [read[start:stop] for start, stop in zip(starts, [*starts[1:], len(read)])]


# Tokens of a model.

SEAM, INSIDE = 0, 1  # classes of what is before a token: the end of a prompt, or a part of a character
NEVER, ALWAYS = 0, 1  # classes of tokens: those that open no span, and ends of text
_FIRST = 2  # the first class of characters


@pytree
@dataclass(frozen=True)
class Opening:
    """Which of a model's tokens open a new span: token v does after token u if table[after[u], first[v]]."""

    after: Int[AnyArray, "V"]  # class of what a token ends with
    first: Int[AnyArray, "V"]  # class of what a token begins with
    table: Bool[AnyArray, "C F"]

    @classmethod
    def every_token(cls, size: int) -> "Opening":
        """Return that of a shared tokenizer, where every token is a span."""
        nothing = np.zeros(size, np.int32)
        return cls(nothing, nothing, np.ones((1, 1), bool))

    @classmethod
    def of(cls, rule: SpanRule, tokenizer: Tokenizer, size: int) -> "Opening":
        """Return that of a tokenizer's spans.

        A token that begins or ends within a character opens no span, or lets none open after it; only ends of text do.

        Args:
          rule: where texts may be cut.
          tokenizer: the model's.
          size: rows of its head, V; those without a token never open a span.
        """
        after, first = np.full(size, SEAM, np.int32), np.full(size, NEVER, np.int32)
        parts = [_characters(read) for read in token_texts(tokenizer)[:size]]
        ends = [_decoded(found[-1]) if found else "" for found in parts]
        begins = [_decoded(found[0]) if found else None for found in parts]
        left = _Groups.of(rule, {end for end in ends if end}, {begin for begin in begins if begin}, first=False)
        right = _Groups.of(rule, {begin for begin in begins if begin}, {end for end in ends if end}, first=True)
        table = np.zeros((_FIRST + left.count, _FIRST + right.count), bool)
        table[_FIRST:, _FIRST:] = _table(rule, left, right)
        table[SEAM], table[:, ALWAYS], table[:, NEVER] = True, True, False
        for token, (end, begin) in enumerate(zip(ends, begins)):
            after[token] = INSIDE if end is None else _FIRST + left.number[end] if end else SEAM
            first[token] = _FIRST + right.number[begin] if begin else NEVER
        first[[token for token in tokenizer.eos_ids if token < size]] = ALWAYS
        return cls(after, first, table)

    def opens(self, before: int | None, token: int) -> bool:
        """Return whether a token opens a span after another one, or (None) after the prompt."""
        return bool(self.table[SEAM if before is None else self.after[before], self.first[token]])


@dataclass(frozen=True)
class _Groups:
    """Characters that the rule does not tell apart."""

    number: dict[str, int]  # of each character's group
    members: tuple[str, ...]  # one of each group
    partners: tuple[frozenset[str], ...]  # of each group: characters that some token joins with them

    @property
    def count(self) -> int:
        return len(self.members)

    @classmethod
    def of(cls, rule: SpanRule, characters: set[str], others: set[str], first: bool) -> "_Groups":
        """Group characters that stand last in a text or (`first`) first in what follows, `others` on the other side."""
        joined: dict[str, set[str]] = {}
        for a, b in rule.characters:
            own, other = (b, a) if first else (a, b)
            if own in characters and other in others:
                joined.setdefault(own, set()).add(other)
        known = {pair[first] for pair in rule.bytes}
        number: dict[str, int] = {}
        groups: dict[Any, int] = {}
        members, partners = list[str](), list[frozenset[str]]()
        for character in sorted(characters):
            byte, found = _edge(character, first), frozenset(joined.get(character, ()))
            kind = _class_of(character), byte if byte in known else None, found
            if kind not in groups:
                groups[kind] = len(groups)
                members.append(character)
                partners.append(found)
            number[character] = groups[kind]
        return cls(number, tuple(members), tuple(partners))


def _table(rule: SpanRule, left: _Groups, right: _Groups) -> Bool[np.ndarray, "C F"]:
    """Return whether a span opens between characters of two groups."""
    classes = [[_class_of(member) for member in groups.members] for groups in (left, right)]
    table = _OPENS[np.ix_(*classes)]
    for i, partners in enumerate(left.partners):
        table[i, [right.number[partner] for partner in partners]] = False
    lasts = np.array([_edge(member, False) for member in left.members], np.int32)
    firsts = np.array([_edge(member, True) for member in right.members], np.int32)
    for last, first in rule.bytes:
        table[np.ix_(lasts == last, firsts == first)] = False
    return table


def _edge(character: str, first: bool) -> int:
    """Return a character's first byte, or its last."""
    return character.encode("utf-8", "replace")[0 if first else -1]


def _decoded(read: bytes) -> str | None:
    """Return the character of these bytes; None for a part of one."""
    try:
        return read.decode()
    except UnicodeDecodeError:
        return None


# Encoding.


@dataclass(frozen=True)
class EncodedText:
    """A text's tokens under one tokenizer, without special ones, and the characters that each covers."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]  # start and end in the text

    @cached_property
    def boundaries(self) -> dict[int, int]:
        """The number of the token that begins at each place where the tokenizer splits the text."""
        found: dict[int, int] = {}
        reached = 0  # a token may hold the end of one character and the beginning of the next
        for number, (start, end) in enumerate(self.offsets):
            if start >= reached:
                found.setdefault(start, number)
            reached = max(reached, end)
        return found


class SpanEncoder:
    """Canonical tokens of one model for texts within a conversation: as a whole text's, special tokens spelled out."""

    def __init__(self, tokenizer: Tokenizer):
        """Copies the tokenizer's pipeline; in the copy no text is read as a special token."""
        backend = Backend.from_str(tokenizer.backend.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self._backend = backend

    def encode(self, text: str, before: str | None = "") -> EncodedText:
        """Return the tokens of a text.

        Args:
          text: the text.
          before: what precedes it, up to a boundary: at least its last span. "": a prompt that is encoded apart, so
            that the tokenizer adds no space in front of the text. None: nothing, the text is the beginning.
        """
        guards = ("",) if before is None else (*([before] if before else []), *_GUARDS, "")
        for guard in guards:
            found = self._backend.encode(guard + text, add_special_tokens=False)
            offsets = [(start - len(guard), end - len(guard)) for start, end in found.offsets]
            if (guard and not any(start == 0 for start, _ in offsets)) or any(a < 0 < b for a, b in offsets):
                continue  # a token is in both
            first = next((i for i, (start, _) in enumerate(offsets) if start >= 0), len(offsets))
            return EncodedText(tuple(found.ids[first:]), tuple(offsets[first:]))
        raise AssertionError("nothing precedes the text in the last try")
