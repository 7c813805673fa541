"""A request for answers, as each of the two routes has it: its prompts, its settings, and the shapes of its bodies."""

import asyncio
import contextlib
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from colm_jax.decoding.candidates import Candidates
from colm_jax.decoding.requests import Generation, Token
from colm_jax.decoding.requests import Request as Wanted
from colm_jax.errors import UserError
from colm_jax.generation import Prompt, encode_requests
from colm_jax.serving import answers
from colm_jax.serving.errors import RETRY, ApiError, bad_request
from colm_jax.serving.schema import ChatBody, CompletionBody, check_model
from colm_jax.serving.service import Busy, Draining, Service
from colm_jax.serving.state import Server
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.strategies import STRATEGIES

_COMPLETION_TOKENS = 16  # of a completion that names no number, as in OpenAI's API


def plain(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose content is text, where it came in parts.

    Raises:
      ApiError: a part that is no text.
    """
    found = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            for part in content:
                if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                    raise bad_request(f"messages.{number}: only text is read, got {part!r:.60}", "messages")
            message = {**message, "content": "".join(part["text"] for part in content)}
        found.append(message)
    return found


async def read_candidates(service: Service, ids: Sequence[int], until: float) -> Candidates:
    """Return the candidates of a text.

    Raises:
      ApiError: there are none at the time `until`, or the service ends.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(service.candidates(ids)), max(0.0, until - time.monotonic()))
    except TimeoutError:
        raise too_late(service) from None
    except Draining:
        raise ApiError(503, "the server is being stopped", headers=RETRY) from None
    except Busy:
        raise busy() from None
    except Exception:
        raise ApiError(500, "the devices failed; the server's log says why") from None


def busy() -> ApiError:
    """Return the error of a request for which there is no place."""
    return ApiError(429, "too many requests wait; try again later", code="overloaded", headers=RETRY)


def too_late(service: Service) -> ApiError:
    """Return the error of a request that took too long."""
    return ApiError(504, f"not finished within {service.settings.deadline:g} seconds (--deadline)", code="deadline")


def check_ids(ids: Sequence[int], size: int, param: str) -> None:
    """Raise ApiError for a token that is not in the vocabulary."""
    if (largest := max(ids, default=0)) >= size:
        raise bad_request(f"{param}: {largest} is no token; the vocabulary ends at {size - 1}", param)


def check_length(length: int, context: int, param: str) -> None:
    """Raise ApiError for a text that is longer than the context."""
    if length > context:
        message = f"{param}: {length} tokens exceed the context of {context}"
        raise bad_request(message, param, "context_length_exceeded")


class Asked(ABC):
    """A request for answers, as the two routes have it: its prompts, its settings, and the shapes of its bodies."""

    route: str
    param: str  # the field of the prompt
    kind: str  # "object" of an answer, and of a chunk
    chunk: str
    prefix: str

    def __init__(
        self, server: Server, body: CompletionBody | ChatBody, tokens: int | None, log_probs: int | None, echoes: bool
    ):
        """Validate a request's fields; its prompts are validated by `encoded`.

        Args:
          server: what the routes share.
          body: the fields.
          tokens: most tokens of an answer; None: the room there is.
          log_probs: how many of the likeliest tokens to give with log-probabilities; None: give none.
          echoes: answers begin with the prompt.

        Raises:
          ApiError: naming the field that is wrong.
        """
        self.server, self.body, self.service = server, body, server.ready
        self.tokens, self.log_probs, self.echoes = tokens, log_probs, echoes
        check_model(body.model, server.name)
        self.until = time.monotonic() + server.settings.deadline
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.count = body.n or 1
        self.texts = answers.TokenTexts(self.service.team.tokenizer.token_bytes)
        if body.stream_options is not None and not body.stream:
            raise bad_request("stream_options needs stream", "stream_options")
        if body.expert_prompt is not None and body.expert_messages is not None:
            raise bad_request("give either expert_prompt or expert_messages", "expert_prompt")
        if body.strategy not in (None, *self.service.strategies):
            message = f"strategy must be one of {', '.join(self.service.strategies)}, got {body.strategy!r:.60}"
            raise bad_request(f"{message} (the server's --strategies say which are compiled)", "strategy")
        self.strategy = body.strategy or self.service.default_strategy
        self._check_strategy()
        self.settings = self._settings()

    def _check_strategy(self) -> None:
        """Raise ApiError for what the strategy cannot give."""
        view, resident = self._view_name, self.service.team.engine.resident
        if view is not None and not STRATEGIES[self.strategy].by_units:
            message = f"strategy {self.strategy} compares the models' tokens: all must see the same prompt"
            raise bad_request(message, view)
        if self.log_probs is None:
            return
        if self.strategy not in answers.LIKELY:
            able = [name for name in self.service.strategies if name in answers.LIKELY]
            hint = f"use {' or '.join(able)}" if able else "no strategy of this server has any"
            raise bad_request(f"logprobs: strategy {self.strategy} has none; {hint}", "logprobs")
        if not resident:
            raise bad_request("logprobs needs experts that share the base's tokenizer", "logprobs")
        if view is not None and self.strategy != "base":
            raise bad_request("logprobs needs experts that see the same prompt as the base", "logprobs")

    @abstractmethod
    def prompts(self) -> list[Prompt]:
        """Return the prompts."""

    def echo_of(self, prompt: int, request: Wanted) -> str:
        """Return the text with which an answer begins: a prompt, or nothing."""
        return ""

    @property
    def threshold(self) -> float:
        """The threshold that counts."""
        return 0.5 if self.settings.threshold is None else float(self.settings.threshold)  # type: ignore[arg-type]

    def _settings(self) -> GenerationSettings:
        body, most = self.body, self.server.settings.max_tokens
        param = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
        if most is not None and (self.tokens or 0) > most:
            raise bad_request(f"{param} must be at most {most} here, got {self.tokens}", param)
        if self.tokens == 0 and not self.echoes:
            raise bad_request("max_tokens must be at least 1 (0 only with echo)", param)
        given: dict[str, Any] = {
            "threshold": body.threshold,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": body.top_p,
            "top_k": max(body.top_k, 0) if body.top_k is not None else None,
            "min_p": body.min_p,
            "stop": body.stops() or None,
            "stop_token_ids": tuple(body.stop_token_ids) if body.stop_token_ids else None,
            "schedule": body.schedule,
            "warmup": body.warmup,
            "rate": body.rate,
            "speculate": body.speculate,
            "on_expert_failure": body.on_expert_failure,
        }
        room = min(self.service.context, most or self.service.context)
        try:
            return self.service.team.settings(
                strategy=self.strategy,
                max_new_tokens=max(1, room if self.tokens is None else self.tokens),
                seed=secrets.randbits(63) if body.seed is None else body.seed % 2**64,
                samples=self.count,
                **{name: value for name, value in given.items() if value is not None},
            )
        except UserError as error:
            raise bad_request(str(error)) from None

    def encoded(self) -> list[Wanted]:
        """Return the requests of all prompts, those of one side by side. Takes long for long prompts.

        Raises:
          ApiError: a prompt that is wrong, or too long.
        """
        prompts, team = self.prompts(), self.service.team
        if (answers_ := len(prompts) * self.count) > self.server.settings.max_choices:
            most = self.server.settings.max_choices
            raise bad_request(f"{answers_} answers are asked for, at most {most} may be (--max_choices)", "n")
        places = [self.param if len(prompts) == 1 else f"{self.param} {i + 1}" for i in range(len(prompts))]
        if answers_ > self.service.room:
            message = f"{answers_} answers are asked for, {self.service.room} can be accepted (--slots, --max_waiting)"
            raise bad_request(message, "n")
        try:
            requests = encode_requests(prompts, self.settings, team.units, team.tokenizer, places)
            for number, request in enumerate(requests):
                team.check_views(request, places[number // self.count])
        except UserError as error:
            raise self._wrong_prompt(str(error), prompts, places) from None
        for number, request in enumerate(requests):
            if (length := len(request.prompt)) >= self.service.context:
                message = f"{length} tokens leave no room in the context of {self.service.context}; shorten it"
                where = places[number // self.count]
                raise bad_request(f"{where}: {message}", self.param, "context_length_exceeded")
        return requests

    def _wrong_prompt(self, message: str, prompts: list[Prompt], places: list[str]) -> ApiError:
        """Return the error of prompts that cannot be encoded."""
        team, param = self.service.team, self.param
        if message.startswith("stop_token_ids"):
            param = "stop_token_ids"
        elif self._view_name is not None:  # whose fault it is shows without it
            plain: list[Prompt] = [
                {key: value for key, value in prompt.items() if "expert" not in key}
                for prompt in prompts
                if isinstance(prompt, dict)
            ]
            with contextlib.suppress(UserError):
                encode_requests(plain, self.settings, team.units, team.tokenizer, places)
                param = self._view_name
        for directory, name in zip(team.directories, (self.server.name, *self.service.names)):
            message = message.replace(str(directory), name)
        return bad_request(message, param, "context_length_exceeded" if "context" in message else None)

    @property
    def _view_name(self) -> str | None:
        """The field that stands in for the prompt in the experts' view."""
        return next(
            (name for name in ("expert_prompt", "expert_messages") if getattr(self.body, name) is not None), None
        )

    def _expert_view(self) -> dict[str, Any]:
        body = self.body
        found: dict[str, Any] = {}
        if body.expert_prompt is not None:
            found["expert_prompt"] = body.expert_prompt
        if body.expert_messages is not None:
            found["expert_messages"] = plain(body.expert_messages)
        return found

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """Return the body of a response."""
        head = {"id": self.id, "object": self.kind, "created": self.created, "model": self.server.name}
        return {**head, "choices": list(choices), "usage": usage, "system_fingerprint": None}

    def part(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """Return the body of a chunk."""
        head = {"id": self.id, "object": self.chunk, "created": self.created, "model": self.server.name}
        return {**head, "choices": list(choices), **({"usage": usage} if self.gives_usage else {})}

    @property
    def gives_usage(self) -> bool:
        """Whether a stream ends with the tokens that were used."""
        return self.body.stream_options is not None and bool(self.body.stream_options.include_usage)

    async def found(self, ids: Sequence[int]) -> answers.LogProbs:
        """Return the log-probabilities of a text."""
        found = await read_candidates(self.service, ids, self.until)
        return answers.LogProbs(found, ids, self.strategy, self.threshold, self.texts)


class Completions(Asked):
    """A request to /v1/completions."""

    route, param, prefix = "/v1/completions", "prompt", "cmpl"
    kind = chunk = "text_completion"
    body: CompletionBody

    def __init__(self, server: Server, body: CompletionBody):
        """Validate a request's fields, as `Asked`."""
        if body.best_of not in (None, 1, body.n):
            raise bad_request(f"best_of is not supported, got {body.best_of}; leave it out", "best_of", "unsupported")
        default = min(_COMPLETION_TOKENS, server.settings.max_tokens or _COMPLETION_TOKENS)
        tokens = default if body.max_tokens is None else body.max_tokens
        super().__init__(server, body, tokens, body.logprobs, bool(body.echo))

    def prompts(self) -> list[Prompt]:
        """Return the prompts, texts or ids."""
        given, view, size = self.body.prompt, self._expert_view(), self.service.team.tokenizer.size
        several = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
        found: list[Prompt] = []
        for one in several:
            if isinstance(one, str):
                found.append({"prompt": one, **view})
            else:
                ids: list[int] = list(one)  # type: ignore[arg-type]
                if not ids:
                    raise bad_request("prompt: a list of tokens must not be empty", "prompt")
                check_ids(ids, size, "prompt")
                found.append({"input_ids": ids, **view})
        return found

    def echo_of(self, prompt: int, request: Wanted) -> str:
        """Return the prompt's text, where it is echoed."""
        given = self.body.prompt
        if not self.echoes:
            return ""
        if isinstance(given, str):
            return given
        if isinstance(given[prompt], str):
            return given[prompt]  # type: ignore[return-value]
        return self.service.team.tokenizer.decode(list(request.prompt))

    async def choice(self, index: int, request: Wanted, answer: Generation | None) -> dict[str, Any]:
        """Return one choice; without an answer, the prompt alone."""
        echo = self.echo_of(index // self.count, request)
        prompt, tokens = list(request.prompt), [] if answer is None else list(answer.tokens)
        found = None
        if self.log_probs is not None:
            shown = await self.found([*prompt, *tokens])
            if self.echoes and answer is not None and answer.finish_reason == "eos":
                tokens.append(shown.end(self.service.team.tokenizer.eos_ids))
            pieces = [] if answer is None else self.texts.pieces_of(answer)
            begin, before = (0, 0) if self.echoes else (len(prompt), 0)
            if self.echoes:
                pieces = [*self.texts.pieces(prompt), *pieces]
            count = len(prompt) + len(tokens)
            found = await asyncio.to_thread(shown.completions, begin, count, self.log_probs, before, pieces)
        return {
            "index": index,
            "text": echo + ("" if answer is None else answer.text),
            "logprobs": found,
            "finish_reason": "length" if answer is None else answers.finish_reason(answer),
            "colm": NOTHING if answer is None else answers.of_answer(answer, self.texts),
        }

    def of_chunk(self, found: answers.LogProbs, begin: int, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """Return "logprobs" of some tokens of a stream."""
        assert self.log_probs is not None
        pieces = [token.text for token in tokens]
        return found.completions(begin, begin + len(tokens), self.log_probs, offset, pieces)

    def begin(self, index: int, request: Wanted) -> list[dict[str, Any]]:
        """Return the first choices of a stream."""
        if not self.echoes:
            return []
        echo = self.echo_of(index // self.count, request)
        return [{"index": index, "text": echo, "logprobs": None, "finish_reason": None}]

    def piece(self, index: int, text: str, colm: dict[str, Any], log_probs: Any, reason: str | None) -> dict[str, Any]:
        """Return a choice of a chunk."""
        return {"index": index, "text": text, "logprobs": log_probs, "finish_reason": reason, "colm": colm}


class Chat(Asked):
    """A request to /v1/chat/completions."""

    route, param, prefix = "/v1/chat/completions", "messages", "chatcmpl"
    kind, chunk = "chat.completion", "chat.completion.chunk"
    body: ChatBody

    def __init__(self, server: Server, body: ChatBody):
        """Validate a request's fields, as `Asked`."""
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise bad_request("max_tokens and max_completion_tokens differ; give one", "max_completion_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        super().__init__(server, body, tokens, (body.top_logprobs or 0) if body.logprobs else None, echoes=False)

    def prompts(self) -> list[Prompt]:
        """Return the conversation."""
        return [{"messages": plain(self.body.messages), **self._expert_view()}]

    async def choice(self, index: int, request: Wanted, answer: Generation | None) -> dict[str, Any]:
        """Return one choice."""
        assert answer is not None
        found = None
        if self.log_probs is not None:
            begin = len(request.prompt)
            shown = await self.found([*request.prompt, *answer.tokens])
            found = await asyncio.to_thread(shown.chat, begin, begin + len(answer.tokens), self.log_probs)
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": found,
            "finish_reason": answers.finish_reason(answer),
            "colm": answers.of_answer(answer, self.texts),
        }

    def of_chunk(self, found: answers.LogProbs, begin: int, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """Return "logprobs" of some tokens of a stream."""
        assert self.log_probs is not None
        return found.chat(begin, begin + len(tokens), self.log_probs)

    def begin(self, index: int, request: Wanted) -> list[dict[str, Any]]:
        """Return the first choices of a stream."""
        return [
            {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ]

    def piece(self, index: int, text: str, colm: dict[str, Any], log_probs: Any, reason: str | None) -> dict[str, Any]:
        """Return a choice of a chunk."""
        delta = {"content": text} if text or reason is None else {}
        return {"index": index, "delta": delta, "logprobs": log_probs, "finish_reason": reason, "colm": colm}


NOTHING: dict[str, Any] = {
    **{name: [] for name in ("tokens", "pieces", "sources", "p_defer", "threshold", "check")},
    "expert_calls": 0,
    "finish_reason": "length",
}
