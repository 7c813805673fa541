"""Conversations: validate messages and tools, render them by the model's chat template, find the assistant's tokens.

The template determines every special token, BOS included; the tokenizer adds none to the rendered text.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from colm_jax.errors import UserError
from colm_jax.storage import check_unicode, shown
from colm_jax.text.tokenizer import Tokenizer

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # a template that marks the assistant's tokens
_REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of reasoning in transformers
_PROBES = "\ue000", "\ue001"  # private-use characters that replace a message's content
_MASKING = "cannot mask; mark the assistant's part in the template with {% generation %} and {% endgeneration %}"


def encode_conversation(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> tuple[list[int], list[bool]]:
    """Return the ids of a record's "messages" (and "tools") by the chat template, and a mask of the assistant's tokens.

    The assistant's tokens are those between the template's {% generation %} marks. Without marks, they extend from the
    end of the generation prompt to the first end-of-text token or, without one, to the end of the message.

    Raises:
      UserError: malformed messages or tools; no template, or one that raises, ignores tools, or does not show where the
        assistant's messages begin and end. The error names the place.
    """
    conversation = Conversation.of(record, tokenizer, where)
    return conversation.masked()


def encode_conversation_prompt(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> list[int]:
    """Return the ids of a record's "messages" (and "tools") with the generation prompt.

    Raises:
      UserError: as `encode_conversation`; the last message is the assistant's.
    """
    conversation = Conversation.of(record, tokenizer, where)
    if conversation.messages[-1]["role"] == "assistant":
        raise UserError(f"{where}: a prompt cannot end with an assistant message; remove it, or add the user's next")
    text = conversation.render(opening=True)
    conversation.check_read(text, opening=True)
    return tokenizer.encode_plain(text)


@dataclass(frozen=True)
class Conversation:
    """A record's messages and tools, with the tokenizer whose template renders them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    tokenizer: Tokenizer
    where: str  # names the record in errors

    @classmethod
    def of(cls, record: dict[str, Any], tokenizer: Tokenizer, where: str) -> "Conversation":
        """Validate a record; keys of a message other than role and content are passed to the template unchanged."""
        messages, tools = record["messages"], record.get("tools")
        if not isinstance(messages, list) or not messages:
            raise UserError(f"{where}: 'messages' must be a list of messages, got {messages!r:.60}")
        if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
            raise UserError(f"{where}: 'tools' must be a list of objects, got {tools!r:.60}")
        return cls([_message(message, where) for message in messages], tools or None, tokenizer, where)

    def render(self, *, opening: bool = False) -> str:
        """Return the rendered text; with `opening`, followed by the generation prompt."""
        return self.apply(tokenize=False, add_generation_prompt=opening)

    def apply(self, **how: Any) -> Any:
        """Return the result of transformers' `apply_chat_template` with the given arguments.

        Raises:
          UserError: no template, or any error that the template raises.
        """
        if not self.tokenizer.backend.chat_template:
            raise UserError(
                f"{self.where}: 'messages' need a chat template; {shown(self.tokenizer.directory)} has none (use "
                "'prompt', or give an expert its own 'expert_prompt')"
            )
        try:
            found = self.tokenizer.backend.apply_chat_template(self.messages, tools=self.tools, **how)
        except Exception as error:  # a template is a program that may raise anything
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            reason = kind + " ".join(str(error).split())[:300]
            raise UserError(f"{self.where}: the chat template rejects these messages: {reason}") from None
        if isinstance(found, str):
            check_unicode(found, f"{self.where}: the conversation")
        return found

    def _first(self, count: int) -> "Conversation":
        return replace(self, messages=self.messages[:count])

    def _accepted(self, *, opening: bool = False) -> str | None:
        """Return `render`; None if the template rejects the messages, as many do without a user's message."""
        try:
            return self.render(opening=opening)
        except UserError:
            return None

    def check_read(self, text: str, *, opening: bool = False) -> None:
        """Raise UserError if the rendered text is the same without tools, tool calls, or the last message's reasoning.

        (Many templates leave out earlier reasoning by design.)
        """
        without = {"tools": replace(self, tools=None)} if self.tools else {}
        if any(message.get("tool_calls") for message in self.messages):
            kept = [{k: v for k, v in message.items() if k != "tool_calls"} for message in self.messages]
            without["tool_calls"] = replace(self, messages=kept)
        *before, last = self.messages
        for key in _REASONING:
            if last.get(key):
                kept = [*before, {k: v for k, v in last.items() if k != key}]
                without[key] = replace(self, messages=kept)
        for key, other in without.items():
            if other._accepted(opening=opening) == text:
                raise UserError(f"{self.where}: the chat template ignores {key!r}; remove it or use another template")

    # The assistant's tokens.

    def masked(self) -> tuple[list[int], list[bool]]:
        """Return the ids of the conversation and the mask of the assistant's tokens (see `encode_conversation`)."""
        text = self.render()
        self.check_read(text)
        if _MARKED.search(self.tokenizer.backend.get_chat_template(tools=self.tools)):
            read = self.apply(return_dict=True, return_assistant_tokens_mask=True)
            return read["input_ids"], [bool(written) for written in read["assistant_masks"]]
        read = self.tokenizer.backend(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = read["input_ids"], read["offset_mapping"]
        targets = [False] * len(ids)
        for begin, end, closed in self._spans(text):
            first = bisect_right(offsets, begin, key=lambda span: span[1])
            last = bisect_left(offsets, end, key=lambda span: span[0])
            stop = next((i + 1 for i in range(first, last) if ids[i] in self.tokenizer.eos_ids), None)
            if stop is None and not closed:
                raise UserError(f"{self.where}: the chat template does not show where a message ends; {_MASKING}")
            targets[first : stop or last] = [True] * ((stop or last) - first)
        return ids, targets

    def _spans(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """Yield begin and end of each assistant message in the rendered text, and whether the end is exact.

        If not, the message ends with an end-of-text token before that end.
        """
        for i, message in enumerate(self.messages):
            if message["role"] == "assistant":
                yield self._opening(text, i), *self._closing(text, i)

    def _opening(self, text: str, i: int) -> int:
        """Return where assistant message i begins: after the generation prompt.

        If the template renders nothing before the message, it begins with its content.
        """
        prompt = self._first(i)._accepted(opening=True) if i else None
        if prompt is None:
            return self._content(text, i)
        if text.startswith(prompt):
            return len(prompt)
        before = self._first(i)._accepted()
        fault = "has a generation prompt that is not a prefix of the answer"
        if before is not None and not text.startswith(before):
            fault = "changes earlier messages if another follows"
        raise UserError(f"{self.where}: the chat template {fault}; {_MASKING}")

    def _closing(self, text: str, i: int) -> tuple[int, bool]:
        """Return where assistant message i ends and True, or a place between its end and the next content and False."""
        if i + 1 == len(self.messages):
            return len(text), True
        whole = self._first(i + 1)._accepted()
        if whole is not None and text.startswith(whole):
            return len(whole), True
        return self._content(text, i + 1), False

    def _content(self, text: str, i: int) -> int:
        """Return where the content of message i begins: the first character that changes with the content."""
        message = self.messages[i]
        probe = _PROBES[str(message.get("content")).strip().startswith(_PROBES[0])]
        messages = [*self.messages[:i], {**message, "content": probe}, *self.messages[i + 1 :]]
        changed = replace(self, messages=messages)._accepted()
        if changed is None or changed == text:
            raise UserError(f"{self.where}: the chat template does not show where message {i + 1} begins; {_MASKING}")
        return next((k for k, (old, new) in enumerate(zip(text, changed)) if old != new), min(len(text), len(changed)))


def _message(message: Any, where: str) -> dict[str, Any]:
    """Return a message with text parts joined and null fields removed; content may be missing next to tool calls."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    calls = isinstance(message, dict) and content is None and message.get("tool_calls")
    if (
        not isinstance(message, dict)
        or not isinstance(message.get("role"), str)
        or not (isinstance(content, str) or calls)
    ):
        raise UserError(
            f"{where}: a message needs 'role' and 'content' strings (or text parts, or 'tool_calls'), "
            f"got {message!r:.60}"
        )
    return {key: value for key, value in {**message, "content": content}.items() if value is not None}
