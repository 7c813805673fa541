"""Stop strings in a text that grows: where one begins, and how much of the text may still become one."""

from collections import deque
from collections.abc import Iterable, Sequence


class StopStrings:
    """Finds stop strings in time linear in the text, however it is divided into parts.

    The text has two readings, and a stop string counts in either: as it is shown, and with special tokens spelled out.
    """

    def __init__(self, stops: Sequence[str]):
        """Looks for any of these strings; none is empty."""
        self._shown = [_Matcher(stop) for stop in stops]
        self._spelled = [_Matcher(stop) for stop in stops]
        self._length = 0  # of the shown text

    def push(self, text: str, special: str | None = None) -> int | None:
        """Read what a token adds to the text, or a special token's spelling, which adds nothing to it.

        Returns:
          Where in the shown text the first stop string begins that this token completes; None while none is complete.
        """
        if special is not None:
            found = self._read(self._spelled, special, [self._length] * len(special))
        else:
            places = range(self._length, self._length + len(text))
            found = self._read(self._shown, text, places) + self._read(self._spelled, text, places)
            self._length += len(text)
        return min(found, default=None)

    @property
    def settled(self) -> int:
        """Length of the shown text that no stop string can cut off any more."""
        matchers = (*self._shown, *self._spelled)
        return min((m.begun for m in matchers if m.begun is not None), default=self._length)

    @staticmethod
    def _read(matchers: Iterable["_Matcher"], text: str, places: Sequence[int]) -> list[int]:
        return [begin for matcher in matchers for begin in matcher.push(text, places)]


class _Matcher:
    """One string, by the automaton of Knuth, Morris and Pratt: how much of it the text so far ends with."""

    def __init__(self, pattern: str):
        self._pattern = pattern
        self._back = [0] * len(pattern)  # of each prefix, the longest shorter one that it ends with
        matched = 0
        for i in range(1, len(pattern)):
            while matched and pattern[i] != pattern[matched]:
                matched = self._back[matched - 1]
            matched += pattern[i] == pattern[matched]
            self._back[i] = matched
        self._matched = 0
        self._places: deque[int] = deque(maxlen=len(pattern))  # of the last characters, in the shown text

    def push(self, text: str, places: Sequence[int]) -> list[int]:
        """Read characters with their places; return the places where complete matches begin."""
        found = []
        for character, place in zip(text, places):
            self._places.append(place)
            while self._matched and character != self._pattern[self._matched]:
                self._matched = self._back[self._matched - 1]
            self._matched += character == self._pattern[self._matched]
            if self._matched == len(self._pattern):
                found.append(self._places[0])
                self._matched = self._back[-1]
        return found

    @property
    def begun(self) -> int | None:
        """The place of the earliest character that may begin a match; None: no match is under way."""
        return self._places[-self._matched] if self._matched else None
