"""Pseudonyms: matches of the user's patterns are replaced in what is sent, and restored in what comes back.

    [patterns]                                    # RULES.toml
    PERSON = ["Ada Lovelace", "Dr\\.? \\w+"]      # regular expressions, one or a list, by name
    EMAIL = '[\\w.+-]+@[\\w.-]+'

A match that is not complete yet is sent: the first of two words of a name, while the second is not written.

The first value that matches becomes PERSON_1 throughout its sequence, another one PERSON_2. A match covers the whole
words (letters, digits and "_" of ASCII) that it touches, so that no pseudonym stands beside another letter, and text
that looks like a pseudonym is replaced like a match: every pseudonym in what is sent stands for one value.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from colm_jax.errors import UserError
from colm_jax.storage import path_of, read_text

_NAME = re.compile(r"[A-Z][A-Z0-9_]*[A-Z0-9]|[A-Z]")
_WORD = "A-Za-z0-9_"
_WORD_CHARACTER = re.compile(rf"[{_WORD}]")
_KEPT = ("role", "type")  # keys of messages and tools whose values are no text


@dataclass(frozen=True)
class Replaced:
    """A text with pseudonyms."""

    text: str
    places: tuple[tuple[int, int, int, int], ...]  # of each pseudonym: start, end in the original; start, end in `text`

    def place(self, offset: int) -> float:
        """Return where an offset of the original is in the text; within a pseudonym in proportion."""
        shift = 0
        for start, end, first, last in self.places:
            if offset <= start:
                break
            if offset < end:
                return first + (offset - start) * (last - first) / (end - start)
            shift = last - end
        return offset + shift

    def inside(self, offset: int) -> bool:
        """Return whether an offset of the original is within what a pseudonym stands for."""
        return any(start < offset < end for start, end, _, _ in self.places)

    def without(self, start: int, end: int) -> str:
        """Return the text without a range of the original; pseudonyms that are only partly in it stay."""
        first, last = self.place(start), self.place(end)
        for _, _, a, b in self.places:
            first = b if a < first < b else first
            last = a if a < last < b else last
        return self.text if first >= last else self.text[: int(first)] + self.text[int(last) :]


@dataclass(frozen=True)
class Restored:
    """A continuation with its values in place of pseudonyms."""

    text: str
    kept: tuple[tuple[int, int], ...]  # where the values are; they are not cut
    unknown: tuple[tuple[int, str], ...]  # offsets and pseudonyms that stand for nothing
    known: int  # characters before what may be the beginning of a pseudonym


@dataclass(frozen=True)
class Redaction:
    """The user's patterns."""

    patterns: Mapping[str, tuple[re.Pattern, ...]]  # by name
    source: str = ""  # the file

    @classmethod
    def read(cls, path: str) -> "Redaction":
        """Read a file of rules.

        Raises:
          UserError: it cannot be read, or a pattern is wrong, named by its key.
        """
        try:
            rules = tomllib.loads(read_text(path_of(path)))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path}: not valid TOML: {error}") from None
        if unknown := ", ".join(rules.keys() - {"patterns"}):
            raise UserError(f"{path}: unknown key {unknown}; rules are regular expressions by name under [patterns]")
        given = rules.get("patterns")
        if not isinstance(given, dict) or not given:
            raise UserError(f"{path}: has no [patterns], which holds regular expressions by name")
        return cls({name: _patterns(f"{path}: patterns.{name}", name, value) for name, value in given.items()}, path)

    def pseudonyms(self) -> "Pseudonyms":
        """Return an empty table, for one sequence."""
        return Pseudonyms(self)


def _patterns(where: str, name: str, value: Any) -> tuple[re.Pattern, ...]:
    """Return the patterns of one key."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: a name is of capital letters, digits and '_', as PERSON")
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part for part in parts):
        raise UserError(f"{where}: must be a regular expression, or a list of them, got {value!r:.60}")
    found = []
    for part in parts:
        try:
            found.append(re.compile(part))
        except re.error as error:
            raise UserError(f"{where}: {part!r} is no regular expression: {error}") from None
        if found[-1].match(""):
            raise UserError(f"{where}: {part!r} matches the empty text")
    return tuple(found)


@dataclass
class Pseudonyms:
    """Which pseudonym stands for which value in one sequence."""

    rules: Redaction
    values: dict[str, str] = field(default_factory=dict)  # by pseudonym
    _numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        """Compile what pseudonyms look like."""
        names = "|".join(sorted(map(re.escape, self.rules.patterns), key=len, reverse=True))
        self._form = re.compile(rf"(?<![{_WORD}])({names})_[0-9]+(?![{_WORD}])")
        self._prefix = re.compile(rf"(?<![{_WORD}])[{_WORD}]+\Z")

    def replace(self, text: str) -> Replaced:
        """Return a text with pseudonyms in place of matches; new values get new ones."""
        parts, places, done, size = list[str](), list[tuple[int, int, int, int]](), 0, 0
        for start, end, name in self._matches(text):
            pseudonym = self._pseudonym(name, text[start:end])
            parts += [text[done:start], pseudonym]
            first = size + start - done
            size, done = first + len(pseudonym), end
            places.append((start, end, first, size))
        return Replaced("".join([*parts, text[done:]]), tuple(places))

    def replace_all(self, value: Any) -> Any:
        """Return messages, or tools, with pseudonyms in all of their texts."""
        if isinstance(value, str):
            return self.replace(value).text
        if isinstance(value, list):
            return [self.replace_all(item) for item in value]
        if isinstance(value, dict):
            return {key: item if key in _KEPT else self.replace_all(item) for key, item in value.items()}
        return value

    def restore(self, text: str, ended: bool = True) -> Restored:
        """Return a text with values in place of pseudonyms.

        Args:
          text: what follows, or holds, text with pseudonyms.
          ended: nothing follows; else its last word may be the beginning of a pseudonym.
        """
        held = len(text)
        if not ended and (tail := self._prefix.search(text)) and self._may_become(tail.group()):
            held = tail.start()
        parts, kept, unknown, done, size = list[str](), list[tuple[int, int]](), list[tuple[int, str]](), 0, 0
        for found in self._form.finditer(text, 0, len(text)):
            if found.start() >= held:
                break
            parts.append(text[done : found.start()])
            size += found.start() - done
            value = self.values.get(found.group())
            if value is None:
                unknown.append((size, found.group()))
                value = found.group()
            else:
                kept.append((size, size + len(value)))
            parts.append(value)
            size, done = size + len(value), found.end()
        known = size + held - done
        return Restored("".join([*parts, text[done:]]), tuple(kept), tuple(unknown), known)

    def _may_become(self, word: str) -> bool:
        """Return whether a pseudonym begins with a word."""
        for name in self.rules.patterns:
            whole = f"{name}_"
            if whole.startswith(word) or (word.startswith(whole) and word[len(whole) :].isdecimal()):
                return True
        return False

    def _matches(self, text: str) -> list[tuple[int, int, str]]:
        """Return start, end and name of what is replaced, from left to right; matches that touch are one."""
        found = [(m.start(), m.end(), m.group(1)) for m in self._form.finditer(text)]
        for name, patterns in self.rules.patterns.items():
            matches = [match.span() for pattern in patterns for match in pattern.finditer(text) if match.group()]
            found += [(*_whole_words(text, start, end), name) for start, end in matches]
        merged: list[tuple[int, int, str]] = []
        for start, end, name in sorted(found, key=lambda match: (match[0], -match[1])):
            if merged and start <= merged[-1][1]:
                before = merged.pop()
                merged.append((before[0], max(before[1], end), before[2]))
            else:
                merged.append((start, end, name))
        return merged

    def _pseudonym(self, name: str, value: str) -> str:
        """Return the pseudonym of a value, a new one for a new value."""
        known = next((key for key, other in self.values.items() if other == value), None)
        if known is not None:
            return known
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        self.values[f"{name}_{number}"] = value
        return f"{name}_{number}"


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a match with the rest of the words that it touches."""
    while start and _WORD_CHARACTER.match(text[start - 1]):
        start -= 1
    while end < len(text) and _WORD_CHARACTER.match(text[end]):
        end += 1
    return start, end
