"""What the engine and the stages ask of an expert that works on units, whatever its kind.

A guest has its weights here, and its own tokenizer and KV cache (`guest.py`). A remote expert is an OpenAI-compatible
endpoint (`remote/`). Experts that share the base's tokenizer and write single tokens are resident instead: they are
part of the jitted decoding loop, and not of this package.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from colm_jax.console import Progress
from colm_jax.data.records import Example
from colm_jax.data.units import TextView, Unit
from colm_jax.scoring.units import UnitScores
from colm_jax.settings.generation import GenerationSettings

__all__ = ["Call", "Expert", "UnitScores", "Written"]


@dataclass(frozen=True)
class Call:
    """A running sequence that waits for an expert to write its next unit."""

    sequence: int  # its id, the same at every call for it
    prompt: Any  # the expert's own view of the prompt: an entry of `Prompts.experts`
    answer: Sequence[Unit]  # all units so far, by any writer; of later calls, the same ones and more
    seed: int  # of this unit's random numbers: a JAX key (`seeds.keys_of_numbers`)
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    most: int = 64  # tokens of the base that there is room for
    number: int = 0  # of the prompt among those that are answered together
    sample: int = 0  # which of its prompt's samples this is
    observes: bool = False  # the unit's evidence is asked for


@dataclass(frozen=True)
class Written:
    """An expert's answer to a call."""

    sequence: int
    unit: Unit | None  # None: the expert wrote nothing that can stand here, and `why` says why
    why: str = ""
    lost: bool = False  # the expert could not be reached, or did not answer in time
    requests: int = 0  # sent to a remote expert for it
    characters: int = 0  # of text, in these requests
    asked: bool = True  # False: it was not asked, since a budget is spent or a context full
    computed: int = 0  # tokens that a guest has chosen to write it, the one that showed its end included
    # Log-probability of the unit, largest entropy and smallest margin at its tokens, in nats; None: not known.
    evidence: tuple[float, float, float] | None = None


@runtime_checkable  # tests check types at every call
class Expert(Protocol):
    """An expert that works on units."""

    name: str
    kind: str  # "guest" or "remote"

    @property
    def passes(self) -> int:
        """Forward passes, or requests, since it was loaded."""
        ...

    @property
    def bytes(self) -> int:
        """Size of the weights that a pass reads; 0 where they are elsewhere."""
        ...

    def expect(self, sequences: int, positions: int | None = None) -> None:
        """Prepare for so many sequences side by side.

        Args:
          sequences: their number.
          positions: most tokens of each, in place of the expert's context, so that no later one compiles anything.
        """
        ...

    def check(self, prompt: Any, settings: GenerationSettings, where: str) -> None:
        """Validate a request before any is begun.

        Args:
          prompt: the expert's own view of the prompt.
          settings: of the request.
          where: names the request in errors.

        Raises:
          UserError: it cannot be answered.
        """
        ...

    def start(self, calls: Sequence[Call]) -> None:
        """Begin to write a unit for each call, together where that can be."""
        ...

    def finished(self, wait: bool) -> list[Written]:
        """Return the units that are finished since the last call; `wait` until there is one, if any was begun."""
        ...

    def release(self, sequence: int) -> None:
        """Forget a sequence that has ended; what is being written for it is dropped."""
        ...

    def score(self, texts: Sequence[Example | TextView], progress: Progress) -> list[UnitScores]:
        """Return the scores of texts; those of a guest are its own tokens, of a remote expert spans."""
        ...
