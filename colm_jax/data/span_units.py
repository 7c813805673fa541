"""Units of a team whose tokenizers differ: spans (`text.spans`), which each model reads with its own tokens."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from colm_jax.data.chat import encode_conversation
from colm_jax.data.records import Example, check_ids, check_string, encode_prompt
from colm_jax.data.units import Prompts, TextView, Unit, UnitText, expert_view
from colm_jax.errors import UserError
from colm_jax.storage import shown
from colm_jax.text.spans import EncodedText, Opening, SpanEncoder, SpanRule, token_texts
from colm_jax.text.tokenizer import Tokenizer, shared_vocabulary

_CONTEXT = 64  # characters before a span with which it is encoded


@dataclass
class Merged:
    """How many boundaries of the texts so far every tokenizer confirmed, and how many not."""

    boundaries: int = 0
    merged: int = 0  # at which some tokenizer does not split: the spans on both sides are one

    @property
    def share(self) -> float:
        """The share that was merged."""
        return self.merged / max(self.boundaries, 1)


@dataclass(frozen=True)
class SpanUnits:
    """Units are spans, which each model reads with its own tokens."""

    tokenizers: tuple[Tokenizer | None, ...]  # of base and experts; None: unknown
    contexts: tuple[int | None, ...]  # where texts are cut, in tokens of each model; None: unknown
    heads: tuple[int, ...]  # rows of each model's head; 0: unknown
    rule: SpanRule
    encoders: tuple[SpanEncoder | None, ...]
    merged: Merged = field(default_factory=Merged)
    shared: bool = False
    openings: dict[int, Opening] = field(default_factory=dict)  # by model; made when they are asked for

    @classmethod
    def of(
        cls, tokenizers: Sequence[Tokenizer | None], contexts: Sequence[int | None], heads: Sequence[int]
    ) -> "SpanUnits":
        """Derive the rule from the tokenizers that are known, the base's first."""
        rule = SpanRule.of([tokenizer for tokenizer in tokenizers if tokenizer is not None])
        encoders = tuple(None if tokenizer is None else SpanEncoder(tokenizer) for tokenizer in tokenizers)
        return cls(tuple(tokenizers), tuple(contexts), tuple(heads), rule, encoders)

    @property
    def _base(self) -> Tokenizer:
        assert self.tokenizers[0] is not None
        return self.tokenizers[0]

    def text(self, record: dict[str, Any], where: str) -> UnitText:
        """Return a record's text; see `Units`. Of several assistant messages the last one counts."""
        prompt, text, ends = _parts(record, self._base, where)
        view = expert_view(record, where) or prompt
        views = (prompt, *(view for _ in self.tokenizers[1:]))
        read = [
            None if encoder is None else encoder.encode(text, None if own is None else "")
            for encoder, own in zip(self.encoders, views)
        ]
        first = [self._prompt_ids(m, own, where) for m, own in enumerate(views)]
        for m, (ids, encoded) in enumerate(zip(first, read)):
            self._check_rows(m, [*ids, *(() if encoded is None else encoded.ids)], where)
        starts = self._confirmed(text, read)
        room = [
            None if encoded is None else _fitting(encoded, starts, len(ids), context)
            for encoded, ids, context in zip(read, first, self.contexts)
        ]
        count = min(number for number in room if number is not None)
        unpredicted = any(not ids and encoded is not None for ids, encoded in zip(first, read))
        unpredicted |= any(encoded is None and own is None for encoded, own in zip(read, views))
        counted = range(int(unpredicted), count)
        ends, cut = ends and count == len(starts), count < len(starts)
        stops = [*starts[1:], len(text)][:count]
        examples: list[Example | TextView] = []
        for m, (encoded, ids, own) in enumerate(zip(read, first, views)):
            if encoded is None:
                spans = tuple(text[a:b] for a, b in zip(starts, stops))
                examples.append(TextView(own, spans, ends, counted.start))
            else:
                numbers = [encoded.boundaries[start] for start in starts[:count]]
                known = encoded.ids[: _ends(encoded, starts)[count - 1] if count else 0]
                end = self._end(m, record, where) if ends else None
                examples.append(self._example(m, ids, known, numbers, counted, end))
        base, *experts = examples
        assert isinstance(base, Example)
        size = len(text[starts[counted.start] : stops[-1]].encode()) if counted else 0
        return UnitText(base, tuple(experts), cut, size)

    def _confirmed(self, text: str, read: Sequence[EncodedText | None]) -> list[int]:
        """Return where spans begin: at the rule's boundaries that all tokenizers confirm.

        A tokenizer confirms a boundary where it splits and its next token would open a span while it writes: tokens
        that are parts of characters do not.
        """
        known = [
            (self.opening(m), encoded.ids, encoded.boundaries) for m, encoded in enumerate(read) if encoded is not None
        ]

        def confirmed(start: int) -> bool:
            numbers = [places.get(start, 0) for _, _, places in known]
            return all(numbers) and all(o.opens(ids[n - 1], ids[n]) for n, (o, ids, _) in zip(numbers, known))

        starts = self.rule.starts(text)
        kept = [start for start in starts if start == 0 or confirmed(start)]
        self.merged.boundaries += len(starts)
        self.merged.merged += len(starts) - len(kept)
        return kept

    def _prompt_ids(self, model: int, prompt: dict[str, Any] | None, where: str) -> list[int]:
        tokenizer = self.tokenizers[model]
        if tokenizer is None:
            return []
        return tokenizer.encode_prompt("") if prompt is None else encode_prompt(prompt, tokenizer, where)

    def _example(
        self, model: int, prompt: list[int], text: Sequence[int], starts: list[int], counted: range, ends: int | None
    ) -> Example:
        """Return a model's tokens: prompt, spans, and an end of text, which is a unit that counts for the base alone.

        Args:
          model: 0 the base, 1..M an expert.
          prompt: its tokens of the prompt.
          text: its tokens of the spans.
          starts: the number of the first token of each span in `text`.
          counted: the spans that count in the loss.
          ends: the end of text that follows; None: the text is not finished.
        """
        tokenizer, context = self.tokenizers[model], self.contexts[model]
        assert tokenizer is not None
        ids = [*prompt, *text]
        begins, targets = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
        begins[len(prompt) + np.array(starts, np.int64)] = True
        if counted:
            targets[len(prompt) + starts[counted.start] :] = True
        if ends is not None and (context is None or len(ids) < context):
            ids.append(ends)
            begins, targets = np.append(begins, model == 0), np.append(targets, model == 0)
        return Example(np.array(ids, np.int32), targets, begins).first(context or len(ids))

    def _end(self, model: int, record: dict[str, Any], where: str) -> int | None:
        """Return a model's end of a finished text: of the base's turn in a conversation, what its template writes."""
        tokenizer = self.tokenizers[model]
        assert tokenizer is not None
        if model == 0 and "messages" in record:
            with suppress(UserError):  # a template that does not show where turns end
                ids, targets = encode_conversation(record, tokenizer, where)
                last = max(i for i, target in enumerate(targets) if target)
                if ids[last] in tokenizer.eos_ids:
                    return ids[last]
        return next(iter(tokenizer.eos_ids), None)

    def prompts(self, prompt: str | dict[str, Any], where: str) -> Prompts:
        """Return the views of a prompt; see `Units`."""
        record = {"prompt": prompt} if isinstance(prompt, str) else prompt
        view = expert_view(record, where)
        if view is None and "input_ids" in record and not any(key in record for key in ("prompt", "text", "messages")):
            view = {"prompt": self._base.decode(check_ids(record["input_ids"], self._base.size, where))}
        place = f"{where}, the experts' view" if view else where
        base = encode_prompt(record, self._base, where)
        experts: list[list[int] | dict[str, Any]] = []
        for m in range(1, len(self.tokenizers)):
            own = view or {
                key: value for key, value in record.items() if key in ("prompt", "text", "messages", "tools")
            }
            experts.append(own if self.tokenizers[m] is None else self._prompt_ids(m, own, place))
        _check_room([base, *experts], self.contexts, where)
        for m, ids in enumerate([base, *experts]):
            if isinstance(ids, list):
                self._check_rows(m, ids, place if m else where)
        return Prompts(base, tuple(experts))

    def _check_rows(self, model: int, ids: Sequence[int], where: str) -> None:
        """Raise UserError for a token that a model does not have: tokenizers may have more than its head has rows."""
        tokenizer, rows = self.tokenizers[model], self.heads[model]
        if tokenizer is not None and (largest := max(ids, default=0)) >= rows:
            raise UserError(
                f"{where}: token {largest} ({tokenizer.words[largest]!r}) of {shown(tokenizer.directory)} is beyond "
                f"the {rows} rows of the model's head; remove it from the text"
            )

    def opening(self, model: int) -> Opening:
        """Return which tokens open a span."""
        tokenizer = self.tokenizers[model]
        assert tokenizer is not None
        if model not in self.openings:
            self.openings[model] = Opening.of(self.rule, tokenizer, self.heads[model])
        return self.openings[model]

    def cut_at(self, length: int) -> "SpanUnits":
        """Return the same with texts cut at `length` tokens of the base; it counts its own merged boundaries."""
        assert self.contexts[0] is not None
        contexts = min(self.contexts[0], length), *self.contexts[1:]
        return replace(self, contexts=contexts, merged=Merged())

    def allowed(self, model: int) -> Bool[np.ndarray, "V"]:
        """Return the base's vocabulary; of an expert, the tokens that add to a text, and its ends of text."""
        if model == 0:
            return shared_vocabulary([self._base], [self.heads[0]])
        tokenizer, found = self.tokenizers[model], np.zeros(self.heads[model], bool)
        assert tokenizer is not None
        for token, read in enumerate(token_texts(tokenizer)[: len(found)]):
            found[token] = bool(read) or token in tokenizer.eos_ids
        return found

    def unit(self, tokens: Sequence[int]) -> Unit:
        """Return the span of the base's tokens."""
        return Unit(_text_of(self._base, tokens), tuple(tokens))

    def read(self, model: int, unit: Unit, before: str) -> list[int] | None:
        """Return the canonical tokens of a span; None where the tokenizer does not split the text in front of it."""
        found = self._encode(model, unit.text, before)
        return list(found.ids) if not before or not unit.text or 0 in found.boundaries else None

    def spells(self, unit: Unit) -> bool:
        """Return whether the base's tokens of a span are those of its text, and the base has them all."""
        return max(unit.tokens, default=0) < self.heads[0] and _text_of(self._base, unit.tokens) == unit.text

    def written(self, model: int, tokens: Sequence[int], before: str) -> Unit:
        """Return the span of an expert's tokens, with the base's canonical ones."""
        tokenizer = self.tokenizers[model]
        assert tokenizer is not None
        return self.spelled(_text_of(tokenizer, tokens), before)

    def spelled(self, text: str, before: str) -> Unit:
        """Return the span of a text, with the base's canonical tokens; `before` is the answer's text before it."""
        return Unit(text, self._encode(0, text, before).ids)

    def _encode(self, model: int, text: str, before: str) -> EncodedText:
        encoder = self.encoders[model]
        assert encoder is not None
        return encoder.encode(text, before[-_CONTEXT:])


def _parts(record: dict[str, Any], base: Tokenizer, where: str) -> tuple[dict[str, Any] | None, str, bool]:
    """Return a record's prompt (None: it has none), the text that follows, and whether the text is finished."""
    if "text" in record:
        return None, check_string(record, "text", where), base.ends_texts
    if "prompt" in record or "completion" in record:
        prompt = check_string(record, "prompt", where)
        return {"prompt": prompt} if prompt else None, check_string(record, "completion", where), True
    if "messages" in record:
        messages = record["messages"]
        last = messages[-1] if isinstance(messages, list) and messages else None
        content = last.get("content") if isinstance(last, dict) and last.get("role") == "assistant" else None
        if not isinstance(content, str):
            raise UserError(f"{where}: the last of 'messages' must be the assistant's, with text as its content")
        return {"messages": messages[:-1], "tools": record.get("tools")}, content, True
    if "input_ids" in record:
        raise UserError(f"{where}: 'input_ids' are of one tokenizer; this team's models have several: give the text")
    keys = ", ".join(map(repr, record)) or "none"
    raise UserError(f"{where}: needs 'text', 'prompt' + 'completion' or 'messages'; keys are {keys}")


def _ends(encoded: EncodedText, starts: Sequence[int]) -> list[int]:
    """Return the number of tokens up to the end of each span."""
    places = encoded.boundaries
    return [*(places[start] for start in starts[1:]), len(encoded.ids)][: len(starts)]


def _fitting(encoded: EncodedText, starts: Sequence[int], prompt: int, context: int | None) -> int:
    """Return how many spans fit in a context after a prompt of so many tokens."""
    return sum(context is None or prompt + end <= context for end in _ends(encoded, starts))


def _text_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text that tokens add within an answer."""
    known = tokenizer.token_bytes
    return b"".join(known.within(i) for i in tokens if known.special(i) is None).decode("utf-8", known.invalid)


def _check_room(prompts: Sequence[Any], contexts: Sequence[int | None], where: str) -> None:
    """Raise UserError for a prompt that leaves no room in a model's context; records have no length yet."""
    for prompt, context in zip(prompts, contexts):
        if isinstance(prompt, list) and context is not None and len(prompt) >= context:
            raise UserError(f"{where}: {len(prompt)} tokens leave no room in the context of {context}; shorten it")
