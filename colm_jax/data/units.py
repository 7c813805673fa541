"""Units: the parts of a text that the models of a team write in turn, and how each model reads them.

Where base and experts share a tokenizer, every token is a unit. Where they do not, a unit is a span (`text.spans`),
which each model reads with tokens of its own; an end of text is a unit of the base alone. Each model may also have its
own view of the prompt: another chat template, or another text ("expert_prompt", "expert_messages").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from colm_jax.data.records import Example, Examples, Records
from colm_jax.errors import UserError
from colm_jax.text.spans import Opening

EXPERT_KEYS = {"expert_prompt": "prompt", "expert_messages": "messages"}


@dataclass(frozen=True)
class Unit:
    """A finished unit of an answer."""

    text: str
    tokens: tuple[int, ...]  # of the base


@dataclass(frozen=True)
class TextView:
    """A text as a model reads it whose tokenizer is unknown."""

    prompt: dict[str, Any] | None  # a prompt record; None: the text is the beginning
    spans: tuple[str, ...]
    finished: bool  # an end of text follows
    skipped: int = 0  # of the first spans, which do not count: 1 where some model does not predict it

    @property
    def first(self) -> int:
        """The number of the first span that counts; without a prompt, nothing precedes the first one."""
        return max(self.skipped, int(self.prompt is None))


@dataclass(frozen=True)
class UnitText:
    """One training or test text, for every model of a team; all have the same units that count, in order."""

    base: Example
    experts: tuple[Example | TextView, ...]  # in which an end of text is no unit that counts
    cut: bool  # it was longer than a model's context
    bytes: int  # of UTF-8, of the spans that count


@runtime_checkable
class Units(Protocol):
    """How a team's texts are cut into units."""

    @property
    def shared(self) -> bool:
        """Whether every token is a unit: the models share a tokenizer, and experts may end a text."""
        ...

    @property
    def contexts(self) -> Sequence[int | None]:
        """Where texts are cut, of base and experts, in tokens of each; None: unknown."""
        ...

    def text(self, record: dict[str, Any], where: str) -> UnitText:
        """Return a record's text for every model.

        Raises:
          UserError: a bad record, named by `where`.
        """
        ...

    def prompts(self, prompt: str | dict[str, Any], where: str) -> "Prompts":
        """Return the views of a prompt, of which an answer is to be written.

        Raises:
          UserError: a bad prompt, or one that leaves no room in a model's context.
        """
        ...

    def opening(self, model: int) -> Opening:
        """Return which tokens open a unit, of the base (0) or of an expert whose tokenizer is known (1..M)."""
        ...

    def allowed(self, model: int) -> Bool[np.ndarray, "V"]:
        """Return the tokens that a model may write whose tokenizer is known; an end of text closes an expert's unit."""
        ...

    def cut_at(self, length: int) -> "Units":
        """Return the same with texts cut at `length` tokens of the base, if its context is longer."""
        ...

    def unit(self, tokens: Sequence[int]) -> Unit:
        """Return the unit of the base's tokens."""
        ...

    def read(self, model: int, unit: Unit, before: str) -> list[int] | None:
        """Return the tokens by which an expert reads a finished unit; `before` is the answer's text before it.

        None: its tokenizer joins the unit with what is before it.
        """
        ...

    def spells(self, unit: Unit) -> bool:
        """Return whether the base's tokens of a unit are those of its text."""
        ...

    def written(self, model: int, tokens: Sequence[int], before: str) -> Unit:
        """Return the unit that an expert has written with its own tokens; `before` is the answer's text before it."""
        ...


@dataclass(frozen=True)
class Prompts:
    """A prompt as each model reads it."""

    base: list[int]
    experts: tuple[list[int] | dict[str, Any], ...]  # ids, or the record for a model whose tokenizer is unknown


def expert_view(record: dict[str, Any], where: str) -> dict[str, Any] | None:
    """Return the prompt record that stands in for a record's prompt in the experts' view; None: they see the same.

    Raises:
      UserError: both "expert_prompt" and "expert_messages".
    """
    given = [key for key in EXPERT_KEYS if record.get(key) is not None]
    if len(given) > 1:
        raise UserError(f"{where}: give 'expert_prompt' or 'expert_messages', not both")
    return {EXPERT_KEYS[key]: record[key] for key in given} or None


def encode_units(records: Records, units: Units, source: str) -> Examples:
    """Read the texts of records in memory, for every model of a team.

    Args:
      records: each with its place.
      units: the team's.
      source: names the records in errors.

    Raises:
      UserError: as `Units.text`; nothing counts in the loss.
    """
    texts = [units.text(record, where) for where, record in records]
    base, cut = tuple(text.base for text in texts), sum(text.cut for text in texts)
    size = np.array([text.bytes for text in texts], np.int64)
    experts = len(texts[0].experts) if texts else 0
    views = tuple(_view([text.experts[m] for text in texts], base) for m in range(experts))
    examples = Examples(base, cut, views=views, text_bytes=size)
    if examples.tokens == 0:
        raise UserError(f"{source}: no token counts in the loss ({cut} of {len(texts)} texts cut at the context)")
    return examples


def _view(texts: Sequence[Example | TextView], base: Sequence[Example]) -> Examples | Sequence[TextView] | None:
    """Return how an expert reads texts; None: as the base."""
    if all(own is text for own, text in zip(texts, base)):
        return None
    own = tuple(text for text in texts if isinstance(text, Example))
    return Examples(own, 0) if own else tuple(text for text in texts if isinstance(text, TextView))
