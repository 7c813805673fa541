"""Units of a team that shares a tokenizer: every token is one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from colm_jax.data.records import Example, encode_fitting_prompt, encode_prompt, encode_text
from colm_jax.data.units import Prompts, Unit, UnitText, expert_view
from colm_jax.text.spans import Opening
from colm_jax.text.tokenizer import Tokenizer


class TokenUnits:
    """Every token is a unit: the models share a tokenizer, which need not be resident."""

    shared = True

    def __init__(self, tokenizer: Tokenizer, contexts: Sequence[int], allowed: np.ndarray, heads: Sequence[int]):
        """Keeps what texts are validated against.

        Args:
          tokenizer: the base's.
          contexts: where texts are cut, of base and experts, in tokens.
          allowed: the shared vocabulary, [V] bool.
          heads: rows of each model's head.
        """
        self._tokenizer, self.contexts, self._allowed, self._heads = tokenizer, contexts, allowed, heads
        self._bytes: dict[int, bytes] = {}  # that tokens add, of those asked for

    def text(self, record: dict[str, Any], where: str) -> UnitText:
        """Return a record's text; see `Units`."""
        base = encode_text(record, self._tokenizer, where, self._allowed)
        view, answer = expert_view(record, where), int(np.argmax(base.targets))
        ids = base.ids[:answer] if view is None else np.array(encode_prompt(view, self._tokenizer, where), np.int32)
        length = len(base.ids) - answer  # of what all models read alike
        room = min(self.contexts[0] - answer, *(context - len(ids) for context in self.contexts[1:]), length)
        base = base.first(min(answer + max(room, 0), self.contexts[0]))
        rest = base.ids[answer:], base.targets[answer:]
        expert = Example(np.concatenate([ids, rest[0]]), np.concatenate([np.zeros(len(ids), bool), rest[1]]))
        experts = [base if view is None else expert.first(context) for context in self.contexts[1:]]
        return UnitText(base, tuple(experts), room < length, self._size(base.ids[base.targets]))

    def _size(self, tokens: np.ndarray) -> int:
        """Return the bytes of the UTF-8 text of tokens."""
        ids, known = tokens.tolist(), self._tokenizer.token_bytes
        for token in {*ids} - self._bytes.keys():
            self._bytes[token] = b"" if known.special(token) is not None else known.within(token)
        return len(b"".join(self._bytes[token] for token in ids).decode("utf-8", known.invalid).encode())

    def prompts(self, prompt: str | dict[str, Any], where: str) -> Prompts:
        """Return the views of a prompt; see `Units`."""
        view = None if isinstance(prompt, str) else expert_view(prompt, where)
        context = min(self.contexts) if view is None else self.contexts[0]
        base = expert = encode_fitting_prompt(prompt, self._tokenizer, context, self._allowed, where)
        if view is not None and len(self.contexts) > 1:
            context, shown = min(self.contexts[1:]), f"{where}, the experts' view"
            expert = encode_fitting_prompt(view, self._tokenizer, context, self._allowed, shown)
        return Prompts(base, (expert,) * (len(self.contexts) - 1))

    def opening(self, model: int) -> Opening:
        """Return that every token opens a unit."""
        return Opening.every_token(self._heads[model])

    def allowed(self, model: int) -> Bool[np.ndarray, "V"]:
        """Return the shared vocabulary."""
        return self._allowed

    def cut_at(self, length: int) -> "TokenUnits":
        """Return the same with texts cut at `length` tokens of the base."""
        contexts = [min(self.contexts[0], length), *self.contexts[1:]]
        return TokenUnits(self._tokenizer, contexts, self._allowed, self._heads)

    def unit(self, tokens: Sequence[int]) -> Unit:
        """Return the unit of a token, without text: tokens are read as they are."""
        return Unit("", tuple(tokens))

    def read(self, model: int, unit: Unit, before: str) -> list[int] | None:
        """Return the same tokens."""
        return list(unit.tokens)

    def spells(self, unit: Unit) -> bool:
        """Return that there is no text to spell."""
        return True

    def written(self, model: int, tokens: Sequence[int], before: str) -> Unit:
        """Return the unit of an expert's token."""
        return Unit("", tuple(tokens))
