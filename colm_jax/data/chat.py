"""Conversations: messages and tools validated, rendered by the model's chat template, and what the assistant wrote.

The template decides every special token, BOS included; the tokenizer adds none to what it renders.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from colm_jax.errors import UserError
from colm_jax.storage import check_unicode
from colm_jax.text.tokenizer import Tokenizer

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # a template that marks what the assistant writes
_REASONING = ("reasoning_content", "reasoning", "thinking")  # names that transformers knows for it
_PROBES = "\ue000", "\ue001"  # private-use characters, which stand in for a message's content
_MASKING = "cannot mask; mark the assistant's part in the template with {% generation %} and {% endgeneration %}"


def encode_conversation(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> tuple[list[int], list[bool]]:
    """Ids of a record's "messages" (and "tools") by the chat template, and which of them the assistant wrote.

    What the assistant wrote lies between the template's {% generation %} marks. Without marks it reaches from the end
    of the generation prompt to the first end-of-text token or, without one, to the end of the message.

    Raises:
      UserError: naming the place: malformed messages or tools, no template, one that raises, ignores tools, or does not
        show where the assistant's messages begin and end.
    """
    conversation = Conversation.of(record, tokenizer, where)
    return conversation.masked()


def encode_conversation_prompt(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> list[int]:
    """Ids of a record's "messages" (and "tools") up to where the assistant begins to write.

    Raises:
      UserError: as `encode_conversation`, or the last message is the assistant's.
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
        """A validated record.

        Keys of a message beside role and content are handed on to the template as they are.
        """
        messages, tools = record["messages"], record.get("tools")
        if not isinstance(messages, list) or not messages:
            raise UserError(f"{where}: 'messages' must be a list of messages, got {messages!r:.60}")
        if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
            raise UserError(f"{where}: 'tools' must be a list of objects, got {tools!r:.60}")
        return cls([_message(message, where) for message in messages], tools or None, tokenizer, where)

    def render(self, *, opening: bool = False) -> str:
        """The text of the conversation; with `opening`, up to where the assistant begins to write."""
        return self.apply(tokenize=False, add_generation_prompt=opening)

    def apply(self, **how: Any) -> Any:
        """What `apply_chat_template` of transformers makes of the conversation, with these arguments.

        Raises:
          UserError: no template, or whatever the template raises.
        """
        if not self.tokenizer.backend.chat_template:
            raise UserError(
                f"{self.where}: 'messages' need a chat template; {self.tokenizer.directory} has none (use 'prompt')"
            )
        try:
            found = self.tokenizer.backend.apply_chat_template(self.messages, tools=self.tools, **how)
        except Exception as error:  # a template is a program: it raises whatever its expressions raise
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            reason = kind + " ".join(str(error).split())[:300]
            raise UserError(f"{self.where}: the chat template refuses these messages: {reason}") from None
        if isinstance(found, str):
            check_unicode(found, f"{self.where}: the conversation")
        return found

    def _first(self, count: int) -> "Conversation":
        return replace(self, messages=self.messages[:count])

    def _accepted(self, *, opening: bool = False) -> str | None:
        """`render`; None where the template refuses these messages, as many do without a user's message."""
        try:
            return self.render(opening=opening)
        except UserError:
            return None

    def check_read(self, text: str, *, opening: bool = False) -> None:
        """Raises UserError where the rendered text is the same without tools, tool calls, or the last reasoning.

        (Many templates leave earlier reasoning out by design.)
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

    # What the assistant wrote.

    def masked(self) -> tuple[list[int], list[bool]]:
        """Ids of the conversation, and which of them the assistant wrote (see `encode_conversation`)."""
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
        """Begin and end of each assistant message in the rendered text, and whether it ends right there.

        If not, it ends with an end-of-text token before there.
        """
        for i, message in enumerate(self.messages):
            if message["role"] == "assistant":
                yield self._opening(text, i), *self._closing(text, i)

    def _opening(self, text: str, i: int) -> int:
        """Where assistant message i begins after its header: at the end of the generation prompt or, where nothing
        comes before that the template renders, with its content."""
        asked = self._first(i)._accepted(opening=True) if i else None
        if asked is None:
            return self._content(text, i)
        if text.startswith(asked):
            return len(asked)
        before = self._first(i)._accepted()
        fault = "has a generation prompt that is no prefix of the answer"
        if before is not None and not text.startswith(before):
            fault = "changes earlier messages when one follows"
        raise UserError(f"{self.where}: the chat template {fault}; {_MASKING}")

    def _closing(self, text: str, i: int) -> tuple[int, bool]:
        """Where assistant message i ends, and True; else a place between its end and the next content, and False."""
        if i + 1 == len(self.messages):
            return len(text), True
        whole = self._first(i + 1)._accepted()
        if whole is not None and text.startswith(whole):
            return len(whole), True
        return self._content(text, i + 1), False

    def _content(self, text: str, i: int) -> int:
        """Where the content of message i begins: the first character that changes when the content does."""
        message = self.messages[i]
        probe = _PROBES[str(message.get("content")).strip().startswith(_PROBES[0])]
        messages = [*self.messages[:i], {**message, "content": probe}, *self.messages[i + 1 :]]
        changed = replace(self, messages=messages)._accepted()
        if changed is None or changed == text:
            raise UserError(f"{self.where}: the chat template does not show where message {i + 1} begins; {_MASKING}")
        return next((k for k, (old, new) in enumerate(zip(text, changed)) if old != new), min(len(text), len(changed)))


def _message(message: Any, where: str) -> dict[str, Any]:
    """A message with its content as a string: text parts joined; none beside tool calls. Null fields are left out."""
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
