"""What has left the machine: requests and characters, for each sequence and in all, and on request the very texts.

A repeated request counts again. Characters are those of the texts that are sent: prompt, messages, tools, and answer.
"""

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colm_jax.errors import UserError


@dataclass(frozen=True)
class Sent:
    """How much was sent."""

    requests: int = 0
    characters: int = 0

    def __add__(self, other: "Sent") -> "Sent":
        """Return both together."""
        return Sent(self.requests + other.requests, self.characters + other.characters)

    def __sub__(self, other: "Sent") -> "Sent":
        """Return what was sent since `other`."""
        return Sent(self.requests - other.requests, self.characters - other.characters)


@dataclass(frozen=True)
class Budget:
    """What may be sent for one sequence; None: no limit."""

    calls: int | None = None
    characters: int | None = None

    def refuses_call(self, calls: int) -> str:
        """Return why a call is refused after so many; "": it is not."""
        if self.calls is not None and calls >= self.calls:
            return f"the budget of {self.calls} expert calls is used up"
        return ""

    def attempts(self, spent: int, characters: int, most: int) -> int:
        """Return how often, up to `most` times, a text of so many characters may be sent after `spent` ones."""
        if self.characters is None:
            return most
        return min(most, max(self.characters - spent, 0) // max(characters, 1))

    def refuses_text(self, spent: int, characters: int) -> str:
        """Return why so many characters may not be sent after `spent` ones."""
        return f"the budget of {self.characters} sent characters is used up ({spent} sent, {characters} more needed)"


class Ledger:
    """Counts what is sent, from several threads."""

    def __init__(self, path: Path | None = None):
        """Begin with nothing.

        Args:
          path: file to which every text that is sent is appended, a JSON line each, before it is sent; None: none.

        Raises:
          UserError: the file cannot be written.
        """
        self._lock = threading.Lock()
        self._sequences: dict[int, Sent] = {}
        self._names: dict[int, tuple[int, int]] = {}  # of sequences: number of the prompt, and of its sample
        self._total = Sent()
        self._path = path
        self._append("")

    @property
    def total(self) -> Sent:
        """All that was sent; a request with several texts counts once."""
        return self._total

    def of(self, sequence: int) -> Sent:
        """Return what was sent for a sequence; a request counts for each whose text is in it."""
        return self._sequences.get(sequence, Sent())

    def name(self, sequence: int, prompt: int, sample: int) -> None:
        """Let lines of a sequence name its prompt and sample by their numbers."""
        self._names[sequence] = prompt, sample

    def record(self, where: str, texts: Sequence[tuple[int | None, int, Any]]) -> None:
        """Count one request.

        Args:
          where: its URL.
          texts: for each text in it the sequence (None: of none), the number of characters, and the text or messages.
        """
        with self._lock:
            self._total += Sent(1, sum(characters for _, characters, _ in texts))
            lines = []
            for sequence, characters, text in texts:
                if sequence is not None:
                    self._sequences[sequence] = self.of(sequence) + Sent(1, characters)
                prompt, sample = (None, None) if sequence is None else self._names.get(sequence, (None, None))
                line = {"to": where, "prompt": prompt, "sample": sample, "characters": characters, "sent": text}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            self._append("".join(lines))

    def forget(self, sequence: int) -> None:
        """Drop the count of a sequence that has ended; the total stays."""
        with self._lock:
            self._sequences.pop(sequence, None)
            self._names.pop(sequence, None)

    def _append(self, lines: str) -> None:
        """Append to the file, if there is one; raises UserError where that fails, and nothing is sent then."""
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            raise UserError(f"{self._path}: the ledger cannot be written: {error.strerror}") from None


def characters_of(value: Any) -> int:
    """Return the number of characters of all strings in a JSON value, without the keys of objects."""
    if isinstance(value, str):
        return len(value)
    parts: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(characters_of, parts))
