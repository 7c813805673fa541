"""Calls of an engine's sessions to experts that work on units: each session gets the units of its own sequences."""

import itertools
import time
from collections.abc import Sequence

from colm_jax.experts.protocol import Call, Expert, Written

_LOOK = 0.002  # seconds between two looks at several experts, when nothing else can be done


class ExpertCalls:
    """Pending and answered calls of all sessions."""

    def __init__(self, experts: Sequence[Expert]):
        """Takes the experts in the team's order."""
        self.experts = tuple(experts)
        self._numbers = itertools.count()
        self._asked: dict[int, int] = {}  # by sequence: the expert (0-based) that writes its next unit
        self._answers: dict[int, Written] = {}

    def new_sequence(self) -> int:
        """Return an id that no other sequence of any session has."""
        return next(self._numbers)

    def start(self, expert: int, calls: Sequence[Call]) -> None:
        """Let an expert (0-based) begin to write a unit for each call."""
        self._asked.update((call.sequence, expert) for call in calls)
        self.experts[expert].start(calls)

    def finished(self, sequences: Sequence[int], wait: bool) -> list[Written]:
        """Return the finished units of some sequences that have called; `wait` until there is one."""
        while True:
            asked = sorted({self._asked[number] for number in sequences if number in self._asked})
            for expert in asked:
                alone = wait and len(asked) == 1 and not any(number in self._answers for number in sequences)
                for written in self.experts[expert].finished(wait=alone):
                    if self._asked.pop(written.sequence, None) is not None:
                        self._answers[written.sequence] = written
            found = [self._answers.pop(number) for number in sequences if number in self._answers]
            if found or not wait or not asked:
                return found
            time.sleep(_LOOK)

    def release(self, sequence: int) -> None:
        """Forget a sequence that has ended."""
        self._asked.pop(sequence, None)
        self._answers.pop(sequence, None)
        for expert in self.experts:
            expert.release(sequence)
