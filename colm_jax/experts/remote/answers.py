"""What comes back: choices and their log-probabilities, validated.

Two forms are in use: lists of tokens, log-probabilities and dictionaries of top ones (OpenAI's completions, vLLM,
llama-cpp-python), and a list "content" of objects (OpenAI's chat, llama.cpp). vLLM's prompt_logprobs are a third.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from colm_jax.experts.remote.client import Lost

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # in a text: a part of a character
_SURROGATES = re.compile("[\ud800-\udfff]")


class Malformed(Lost):
    """An answer that is JSON but not what was asked for."""


@dataclass(frozen=True)
class TokenScore:
    """A token and what the endpoint says of its position."""

    text: str  # with UNKNOWN in it, or nothing, where it holds a part of a character
    log_prob: float | None  # nats; None for the first of a text
    top: tuple[tuple[str, float], ...]  # the likeliest tokens there, with log-probabilities

    @property
    def is_argmax(self) -> bool:
        """Whether no other token is known to be likelier; compares an endpoint's own numbers."""
        own = -math.inf if self.log_prob is None else self.log_prob
        return all(log_prob <= own for _, log_prob in self.top)


@dataclass(frozen=True)
class Choice:
    """One continuation."""

    text: str
    ended: bool  # the model ended its text; else it was cut at the number of tokens asked for
    tokens: tuple[TokenScore, ...]  # (): the endpoint gives no log-probabilities


def choices_of(answer: Any, count: int) -> list[dict[str, Any]]:
    """Return the `count` choices of an answer in the order of the prompts.

    Raises:
      Malformed: another number of them, or no list.
    """
    found = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise Malformed("the answer holds no list 'choices'")
    if len(found) != count:
        raise Malformed(f"the answer holds {len(found)} choices for {count} texts")
    numbers = [choice.get("index") for choice in found]
    if sorted(map(str, numbers)) == sorted(map(str, range(count))):
        return [found[numbers.index(i)] for i in range(count)]
    if count > 1:
        raise Malformed(f"the choices of {count} texts have the indices {numbers!r:.60}")
    return found


def read_completion(choice: dict[str, Any]) -> Choice:
    """Return a choice of /v1/completions."""
    return _choice(choice, choice.get("text"))


def read_chat(choice: dict[str, Any]) -> Choice:
    """Return a choice of /v1/chat/completions; no content is an empty text."""
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Malformed("the answer's choice holds no 'message'")
    return _choice(choice, "" if message.get("content") is None else message["content"])


def _choice(choice: dict[str, Any], text: Any) -> Choice:
    if not isinstance(text, str):
        raise Malformed("the answer's choice holds no text")
    return Choice(
        _unicode(text), choice.get("finish_reason") != "length", tuple(read_log_probs(choice.get("logprobs")))
    )


def read_log_probs(value: Any) -> list[TokenScore]:
    """Return the tokens of a choice's "logprobs"; none where there are none.

    Raises:
      Malformed: lists of different lengths, or no numbers.
    """
    if not value:
        return []
    if not isinstance(value, dict):
        raise Malformed("the answer's 'logprobs' are no object")
    if isinstance(value.get("content"), list):
        return [_of_object(item) for item in value["content"]]
    tokens, log_probs, top = (value.get(key) or [] for key in ("tokens", "token_logprobs", "top_logprobs"))
    top = top or [None] * len(tokens)
    if not all(isinstance(part, list) for part in (tokens, log_probs, top)):
        raise Malformed("the answer's 'logprobs' hold no lists")
    if not len(tokens) == len(log_probs) == len(top):
        raise Malformed(
            f"the answer's 'logprobs' have {len(tokens)} tokens, {len(log_probs)} log-probabilities and {len(top)} "
            "top ones"
        )
    return [
        TokenScore(_text(token), None if log_prob is None else _number(log_prob), _top(likely))
        for token, log_prob, likely in zip(tokens, log_probs, top)
    ]


def read_prompt_log_probs(value: Any) -> list[TokenScore]:
    """Return the tokens of vLLM's "prompt_logprobs": for each a dictionary from ids, the prompt's own first.

    Raises:
      Malformed: not in this form.
    """
    if not isinstance(value, list):
        raise Malformed("the answer holds no list 'prompt_logprobs'")
    found = []
    for entry in value:
        if entry is None:  # of the first token, which nothing predicts, and whose text is not told
            found.append(TokenScore("", None, ()))
            continue
        if not isinstance(entry, dict) or not entry or not all(isinstance(item, dict) for item in entry.values()):
            raise Malformed("an entry of 'prompt_logprobs' is no object of tokens")
        items = [(_text(item.get("decoded_token") or ""), _number(item.get("logprob"))) for item in entry.values()]
        found.append(TokenScore(*items[0], tuple(items)))
    return found


def _of_object(item: Any) -> TokenScore:
    """Return the token of an object with "token", "logprob" and "top_logprobs"."""
    if not isinstance(item, dict) or not isinstance(item.get("top_logprobs", []), list):
        raise Malformed("an entry of the answer's 'logprobs' is no object")
    likely = item.get("top_logprobs") or []
    if not all(isinstance(other, dict) for other in likely):
        raise Malformed("the answer's 'top_logprobs' hold no objects")
    top = tuple((_text(other.get("token")), _number(other.get("logprob"))) for other in likely)
    own = item.get("logprob")
    return TokenScore(_text(item.get("token")), None if own is None else _number(own), top)


def _top(value: Any) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise Malformed("the answer's 'top_logprobs' hold no objects")
    return tuple((_text(token), _number(log_prob)) for token, log_prob in value.items())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Malformed("a token of the answer is no text")
    return _unicode(value)


def _unicode(text: str) -> str:
    """Return a text with halves of surrogate pairs, which JSON may hold, replaced."""
    return _SURROGATES.sub(UNKNOWN, text)


def _number(value: Any) -> float:
    """Return a log-probability; rounding may have left it just above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > 1e-3:
        raise Malformed(f"a log-probability of the answer is {value!r:.30}")
    return min(float(value), 0.0)
