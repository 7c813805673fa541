"""What is sent: the expert's view of a prompt with the answer so far, and every sampling parameter spelled out.

Servers have defaults of their own (penalties of repetition, min_p, top_k, a model's generation_config.json), so neutral
values are sent too; `EXTRAS` beyond OpenAI's own as far as the endpoint takes them.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from colm_jax.errors import UserError
from colm_jax.experts.remote.ledger import characters_of
from colm_jax.storage import check_unicode

EXTRAS = ("top_k", "min_p", "repetition_penalty", "repeat_penalty")  # vLLM's and llama.cpp's names


@dataclass(frozen=True)
class Sampling:
    """How an endpoint chooses tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def fields(self, extras: tuple[str, ...]) -> dict[str, Any]:
        """Return the fields of a request.

        Raises:
          UserError: the endpoint does not take a parameter that is not neutral.
        """
        values: dict[str, Any] = {"top_k": self.top_k, "min_p": self.min_p}
        values |= {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
        for name in ("top_k", "min_p"):
            if values[name] and name not in extras:
                raise UserError(f"a remote expert's endpoint does not take {name}; leave it out, or use top_p")
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed & 0x7FFFFFFF,  # endpoints take 31 bits
            "n": 1,
            "stream": False,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            **{name: values[name] for name in extras},
        }


@dataclass(frozen=True)
class View:
    """An expert's view of a prompt, and what follows it."""

    text: str | None = None  # of the prompt; None: it has messages
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    answer: str = ""  # so far

    @property
    def sent(self) -> Any:
        """What is sent, as the ledger writes it."""
        if self.text is not None:
            return self.text + self.answer
        return {"messages": self.conversation} | ({"tools": list(self.tools)} if self.tools else {})

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages, the answer so far as the assistant's unfinished turn."""
        last = [{"role": "assistant", "content": self.answer}] if self.answer else []
        return [*self.messages, *last]

    @property
    def characters(self) -> int:
        """The number of characters that are sent."""
        return characters_of(self.sent)

    def followed_by(self, text: str) -> "View":
        """Return the view after more of the answer."""
        return replace(self, answer=self.answer + text)


def view_of(prompt: dict[str, Any] | None, completions: bool, chat: bool, where: str) -> View:
    """Return the view of a prompt record; None: the text is the beginning.

    A plain prompt is continued as a text. Where the endpoint has only chat, it becomes a user's message. Messages need
    chat: the template of a remote model is not known here.

    Raises:
      UserError: the endpoint has nothing that takes such a prompt.
    """
    record = prompt or {}
    if record.get("messages") is not None and "prompt" not in record and "text" not in record:
        if not chat:
            raise UserError(
                f"{where}: has no /v1/chat/completions, and only the endpoint knows its model's chat template; give "
                "'expert_prompt', the prompt as a text"
            )
        messages, tools = record["messages"], record.get("tools") or ()
        if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
            raise UserError(f"{where}: 'messages' must be a list of objects with a 'role', got {messages!r:.60}")
        check_unicode(json.dumps([messages, tools], ensure_ascii=False), f"{where}: 'messages'")
        return View(messages=tuple(messages), tools=tuple(tools))
    text = record.get("prompt", record.get("text", ""))
    check_unicode(text, f"{where}: the prompt")
    if completions:
        return View(text=text)
    if not text:
        raise UserError(f"{where}: has only /v1/chat/completions, which needs a prompt; give 'prompt' or 'messages'")
    return View(messages=({"role": "user", "content": text},))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str)


def completion_body(name: str, prompts: list[str], tokens: int, sampling: dict[str, Any]) -> dict[str, Any]:
    """Return the body for /v1/completions; one text is sent as a string."""
    prompt = prompts[0] if len(prompts) == 1 else prompts
    return {"model": name, "prompt": prompt, "max_tokens": tokens, **sampling}


def chat_body(name: str, view: View, tokens: int, sampling: dict[str, Any], continues: str) -> dict[str, Any]:
    """Return the body for /v1/chat/completions.

    Args:
      name: the model's.
      view: with messages.
      tokens: most that are asked for.
      sampling: fields of `Sampling`.
      continues: how a request says that the last message is unfinished: "continue_final_message", or "prefill":
        by its being the assistant's.
    """
    body = {"model": name, "messages": view.conversation, "max_tokens": tokens, **sampling}
    if view.tools:
        body["tools"] = list(view.tools)
    if view.answer and continues == "continue_final_message":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body
