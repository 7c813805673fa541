"""The API over HTTP: OpenAI's routes, tokens, health, metrics and the page. Nothing here touches a device."""

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from colm_jax.decoding.candidates import Candidates
from colm_jax.decoding.requests import Generation
from colm_jax.decoding.requests import Request as Wanted
from colm_jax.errors import UserError
from colm_jax.generation import Prompt, encode_requests
from colm_jax.serving import answers
from colm_jax.serving.errors import ApiError, bad_request
from colm_jax.serving.metrics import Metrics
from colm_jax.serving.schema import (
    CandidatesBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    check_model,
    parse,
)
from colm_jax.serving.service import Busy, Draining, Event, Failed, Job, Service
from colm_jax.settings.generation import GenerationSettings
from colm_jax.settings.serving import ServingSettings
from colm_jax.settings.strategies import STRATEGIES

_COMPLETION_TOKENS = 16  # of a completion that names no number, as in OpenAI's API
_RETRY = {"Retry-After": "1"}
# The page holds its own script and style; their hashes are in the policy, so that nothing else is run.
_PAGE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

logger = logging.getLogger("colm_jax.serving")
T = TypeVar("T", bound=BaseModel)


@dataclass
class Server:
    """What the routes share."""

    name: str  # of the team, as requests name it
    settings: ServingSettings
    key: str | None = None  # that clients must present
    origins: Sequence[str] = ()  # whose pages may call the API
    hosts: Sequence[str] = ()  # names that requests may have for this server; (): any
    service: Service | None = None  # None while the weights are loaded
    active: int = 0  # requests for answers that are being worked on
    metrics: Metrics = field(default_factory=Metrics)
    began: int = field(default_factory=lambda: int(time.time()))

    @property
    def ready(self) -> Service:
        """The service, once all its programs are compiled.

        Raises:
          ApiError: it loads, or ends.
        """
        if self.service is None or not self.service.ready.is_set():
            raise ApiError(503, "the model is being loaded; try again later", headers={"Retry-After": "5"})
        if self.service.failure is not None:
            raise ApiError(503, "the server has failed; its log says why", headers=_RETRY)
        if self.service.draining:
            raise ApiError(503, "the server is being stopped", headers=_RETRY)
        return self.service


def create_app(server: Server) -> FastAPI:
    """Return the application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Guard, server=server)
    if server.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(server.origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        if not error.counted:
            server.metrics.requests.labels(_route(request), str(error.status)).inc()
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse(ApiError(500, "the server failed; its log says why").body, 500)

    @app.get("/health")
    async def health() -> Response:
        server.ready  # noqa: B018  raises while it is not
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_card(server)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        check_model(name, server.name)
        return JSONResponse(_card(server))

    @app.get("/")
    async def page() -> Response:
        text, policy = _page()
        return Response(text, media_type="text/html", headers={**_PAGE_HEADERS, "Content-Security-Policy": policy})

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(server, request, _Completions(server, await _body(server, request, CompletionBody)))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(server, request, _Chat(server, await _body(server, request, ChatBody)))

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await _body(server, request, TokenizeBody)
        check_model(body.model, server.name)
        return JSONResponse(await asyncio.to_thread(_tokenize, server.ready, body))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await _body(server, request, DetokenizeBody)
        check_model(body.model, server.name)
        tokenizer = server.ready.team.tokenizer
        _check_ids(body.tokens, tokenizer.size, "tokens")
        text = await asyncio.to_thread(tokenizer.backend.decode, body.tokens, skip_special_tokens=False)
        return JSONResponse({"prompt": text})

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        backend = server.ready.team.tokenizer.backend
        special = {name: str(token) for name, token in backend.special_tokens_map.items() if isinstance(token, str)}
        facts = {"tokenizer_class": type(backend).__name__, "chat_template": backend.chat_template}
        return JSONResponse({**facts, "model_max_length": server.ready.context, **special})

    @app.post("/v1/candidates")
    async def candidates(request: Request) -> Response:
        body = await _body(server, request, CandidatesBody)
        check_model(body.model, server.name)
        service = server.ready
        _check_ids(body.tokens, len(service.team.allowed), "tokens")
        _check_length(len(body.tokens), service.context, "tokens")
        found = await _read(service, body.tokens, time.monotonic() + server.settings.deadline)
        texts = answers.TokenTexts(service.team.tokenizer.token_bytes)
        return JSONResponse(answers.candidates_body(found, body.top, texts, service.team.gate is not None))

    return app


def _route(request: Request) -> str:
    """Return the route of a request, for metrics: one of few."""
    route = request.scope.get("route")
    return getattr(route, "path", "other")


def _page() -> tuple[str, str]:
    """Return the page and its Content-Security-Policy."""
    nonce = secrets.token_urlsafe(16)
    text = files("colm_jax.serving").joinpath("page.html").read_text(encoding="utf-8").replace("NONCE", nonce)
    own = f"'nonce-{nonce}'"
    policy = (
        f"default-src 'none'; script-src {own}; style-src {own}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


class _Guard:
    """Asks for the key, on every route but /health, and keeps out what other web pages send through a browser.

    A page elsewhere can send a request without asking (a form, or JSON as plain text), and can make a name of its own
    resolve to this machine. Such requests have an Origin, or a Host, that is not this server's.
    """

    def __init__(self, app: ASGIApp, server: Server):
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        if (foreign := self._foreign(scope)) is not None:
            await JSONResponse(foreign.body, foreign.status)(scope, receive, send)
            return
        if self._allowed(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(401, "wrong or missing API key: send it as Authorization: Bearer KEY", code="invalid_api_key")
        headers = {"WWW-Authenticate": 'Basic realm="colm", charset="UTF-8"' if scope["path"] == "/" else "Bearer"}
        await JSONResponse(error.body, 401, headers)(scope, receive, send)

    def _foreign(self, scope: Scope) -> ApiError | None:
        """Return why a request from another web page is refused; None: it is none."""
        host, origin = _header(scope, b"host").decode("latin-1"), _header(scope, b"origin").decode("latin-1")
        if self._server.hosts and urlsplit(f"//{host}").hostname not in self._server.hosts:
            return ApiError(403, f"this server is not {host!r:.100}; without a key it answers to its own address only")
        own = origin.partition("://")[2].lower() == host.lower()
        if origin and not own and not {origin, "*"} & {*self._server.origins}:
            return ApiError(403, f"pages of {origin!r:.100} may not call this server (--cors_origin)")
        return None

    def _allowed(self, scope: Scope) -> bool:
        key = self._server.key
        if key is None:
            return True
        given = _header(scope, b"authorization")
        scheme, _, secret = given.partition(b" ")
        if scheme.lower() == b"basic":  # a browser's, for the page: any name, the key as password
            try:
                secret = b64decode(secret, validate=True).partition(b":")[2]
            except ValueError:
                secret = b""
        elif scheme.lower() != b"bearer":
            secret = b""
        return hmac.compare_digest(secret.strip(), key.encode())


def _header(scope: Scope, name: bytes) -> bytes:
    """Return a header of a request; b"" where it has none."""
    return next((value for each, value in scope["headers"] if each == name), b"")


async def _body(server: Server, request: Request, kind: type[T]) -> T:
    """Return a request's body.

    Raises:
      ApiError: it is too long, no JSON, or has a field that is wrong.
    """
    most, parts, size = server.settings.max_body, [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise ApiError(413, f"the body has more than {most} bytes (--max_body)")
            parts.append(part)
    except ClientDisconnect:
        raise ApiError(400, "the client went away") from None
    return await asyncio.to_thread(parse, kind, b"".join(parts), server.settings.ignore_unknown_fields)


def _card(server: Server) -> dict[str, Any]:
    """Return what /v1/models says of the team."""
    card: dict[str, Any] = {"id": server.name, "object": "model", "created": server.began, "owned_by": "colm-jax"}
    service = server.service
    if service is None:
        return card
    team = service.team
    names = [server.name, *service.names]
    threshold = team.settings().threshold
    return {
        **card,
        "max_model_len": service.context,
        "colm": {
            "models": names,
            "kinds": list(team.kinds),
            "strategies": list(service.strategies),
            "threshold": 0.5 if threshold is None else threshold,
            "calibrated": team.calibrated_threshold is not None,
            "chat": bool(team.tokenizer.backend.chat_template),
            "log_probs": team.engine.resident,
        },
    }


def _tokenize(service: Service, body: TokenizeBody) -> dict[str, Any]:
    tokenizer = service.team.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", "prompt")
    try:
        if body.messages is not None:
            ids = list(service.team.units.prompts({"messages": _plain(body.messages)}, "messages").base)
        else:
            assert body.prompt is not None
            ids = (tokenizer.encode if body.add_special_tokens else tokenizer.encode_plain)(body.prompt)
    except UserError as error:
        raise bad_request(str(error), "prompt" if body.messages is None else "messages") from None
    found: dict[str, Any] = {"count": len(ids), "max_model_len": service.context, "tokens": ids}
    if body.return_token_strs:
        found["token_strs"] = tokenizer.backend.convert_ids_to_tokens(ids)
    return found


def _plain(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
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


async def _read(service: Service, ids: Sequence[int], until: float) -> Candidates:
    """Return the candidates of a text.

    Raises:
      ApiError: there are none at the time `until`, or the service ends.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(service.candidates(ids)), max(0.0, until - time.monotonic()))
    except TimeoutError:
        raise _late(service) from None
    except Draining:
        raise ApiError(503, "the server is being stopped", headers=_RETRY) from None


def _late(service: Service) -> ApiError:
    """Return the error of a request that took too long."""
    return ApiError(504, f"not finished within {service.settings.deadline:g} seconds (--deadline)", code="deadline")


def _check_ids(ids: Sequence[int], size: int, param: str) -> None:
    """Raise ApiError for a token that is not in the vocabulary."""
    if (largest := max(ids, default=0)) >= size:
        raise bad_request(f"{param}: {largest} is no token; the vocabulary ends at {size - 1}", param)


def _check_length(length: int, context: int, param: str) -> None:
    if length > context:
        message = f"{param}: {length} tokens exceed the context of {context}"
        raise bad_request(message, param, "context_length_exceeded")


class _Asked:
    """A request for answers, as the two routes have it: its prompts, its settings, and the shapes of its bodies."""

    route: str
    param: str  # the field of the prompt
    kind: str  # "object" of an answer, and of a chunk
    chunk: str
    prefix: str

    def __init__(self, server: Server, body: CompletionBody | ChatBody):
        self.server, self.body, self.service = server, body, server.ready
        check_model(body.model, server.name)
        self.until = time.monotonic() + server.settings.deadline
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.count = body.n or 1
        self.texts = answers.TokenTexts(self.service.team.tokenizer.token_bytes)
        if body.stream_options is not None and not body.stream:
            raise bad_request("stream_options needs stream", "stream_options")
        if body.expert_prompt is not None and body.expert_messages is not None:
            raise bad_request("give either expert_prompt or expert_messages", "expert_prompt")
        if not isinstance(body.strategy, str | None) or body.strategy not in (None, *self.service.strategies):
            message = f"strategy must be one of {', '.join(self.service.strategies)}, got {body.strategy!r:.60}"
            raise bad_request(f"{message} (the server's --strategies say which are compiled)", "strategy")
        self.strategy = body.strategy or self.service.default_strategy
        self.settings = self._settings()
        if self.log_probs is not None and self.strategy not in answers.LIKELY:
            able = [name for name in self.service.strategies if name in answers.LIKELY]
            hint = f"use {' or '.join(able)}" if able else "no strategy of this server has any"
            raise bad_request(f"logprobs: strategy {self.strategy} has none; {hint}", "logprobs")
        if self.log_probs is not None and not self.service.team.engine.resident:
            raise bad_request("logprobs needs experts that share the base's tokenizer", "logprobs")
        view = self._view_name
        if self.log_probs is not None and view is not None and self.strategy != "base":
            raise bad_request("logprobs needs experts that see the same prompt as the base", "logprobs")
        if view is not None and not STRATEGIES[self.strategy].by_units:
            message = f"strategy {self.strategy} compares the models' tokens: all must see the same prompt"
            raise bad_request(message, view)

    # What a route says.

    def prompts(self) -> list[Prompt]:
        """Return the prompts."""
        raise NotImplementedError

    @property
    def tokens(self) -> int | None:
        """Most tokens of an answer; None: the room there is."""
        raise NotImplementedError

    @property
    def log_probs(self) -> int | None:
        """How many of the likeliest tokens to give with log-probabilities; None: give none."""
        raise NotImplementedError

    @property
    def echoes(self) -> bool:
        """Whether answers begin with the prompt."""
        return False

    def echo_of(self, prompt: int, request: Wanted) -> str:
        """Return the text with which an answer begins: a prompt, or nothing."""
        return ""

    # What both share.

    @property
    def threshold(self) -> float:
        """The threshold that counts."""
        return 0.5 if self.settings.threshold is None else float(self.settings.threshold)  # type: ignore[arg-type]

    def _settings(self) -> GenerationSettings:
        body, most, param = self.body, self.server.settings.max_tokens, "max_tokens"
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
            found["expert_messages"] = _plain(body.expert_messages)
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
        found = await _read(self.service, ids, self.until)
        return answers.LogProbs(found, ids, self.strategy, self.threshold, self.texts)


class _Completions(_Asked):
    route, param, prefix = "/v1/completions", "prompt", "cmpl"
    kind = chunk = "text_completion"
    body: CompletionBody

    def __init__(self, server: Server, body: CompletionBody):
        super().__init__(server, body)
        if body.best_of not in (None, 1, body.n):
            raise bad_request(f"best_of is not supported, got {body.best_of}; leave it out", "best_of", "unsupported")

    def prompts(self) -> list[Prompt]:
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
                _check_ids(ids, size, "prompt")
                found.append({"input_ids": ids, **view})
        return found

    @property
    def tokens(self) -> int | None:
        return _COMPLETION_TOKENS if self.body.max_tokens is None else self.body.max_tokens

    @property
    def log_probs(self) -> int | None:
        return self.body.logprobs

    @property
    def echoes(self) -> bool:
        return bool(self.body.echo)

    def echo_of(self, prompt: int, request: Wanted) -> str:
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
        if self.echoes and answer is not None and answer.finish_reason == "eos":
            tokens.append(self.service.team.tokenizer.eos_id)  # has an entry among the log-probabilities, too
        if self.log_probs is not None:
            shown = await self.found([*prompt, *tokens])
            pieces = [] if answer is None else self.texts.pieces_of(answer)
            begin, before = (0, 0) if self.echoes else (len(prompt), 0)
            if self.echoes:
                pieces = [*self.texts.pieces(prompt), *pieces]
            found = shown.completions(begin, len(prompt) + len(tokens), self.log_probs, before, pieces)
        return {
            "index": index,
            "text": echo + ("" if answer is None else answer.text),
            "logprobs": found,
            "finish_reason": "length" if answer is None else answers.finish_reason(answer),
            "colm": _NOTHING if answer is None else answers.of_answer(answer, self.texts),
        }

    def begin(self, index: int, request: Wanted) -> list[dict[str, Any]]:
        """Return the first choices of a stream."""
        if not self.echoes:
            return []
        echo = self.echo_of(index // self.count, request)
        return [{"index": index, "text": echo, "logprobs": None, "finish_reason": None}]

    def piece(self, index: int, text: str, colm: dict[str, Any], log_probs: Any, reason: str | None) -> dict[str, Any]:
        """Return a choice of a chunk."""
        return {"index": index, "text": text, "logprobs": log_probs, "finish_reason": reason, "colm": colm}


class _Chat(_Asked):
    route, param, prefix = "/v1/chat/completions", "messages", "chatcmpl"
    kind, chunk = "chat.completion", "chat.completion.chunk"
    body: ChatBody

    def __init__(self, server: Server, body: ChatBody):
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise bad_request("max_tokens and max_completion_tokens differ; give one", "max_completion_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        super().__init__(server, body)

    def prompts(self) -> list[Prompt]:
        return [{"messages": _plain(self.body.messages), **self._expert_view()}]

    @property
    def tokens(self) -> int | None:
        return self.body.max_tokens if self.body.max_completion_tokens is None else self.body.max_completion_tokens

    @property
    def log_probs(self) -> int | None:
        return (self.body.top_logprobs or 0) if self.body.logprobs else None

    async def choice(self, index: int, request: Wanted, answer: Generation | None) -> dict[str, Any]:
        """Return one choice."""
        assert answer is not None
        found = None
        if self.log_probs is not None:
            begin = len(request.prompt)
            shown = await self.found([*request.prompt, *answer.tokens])
            found = shown.chat(begin, begin + len(answer.tokens), self.log_probs)
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": found,
            "finish_reason": answers.finish_reason(answer),
            "colm": answers.of_answer(answer, self.texts),
        }

    def begin(self, index: int, request: Wanted) -> list[dict[str, Any]]:
        """Return the first choices of a stream."""
        return [
            {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ]

    def piece(self, index: int, text: str, colm: dict[str, Any], log_probs: Any, reason: str | None) -> dict[str, Any]:
        """Return a choice of a chunk."""
        delta = {"content": text} if text or reason is None else {}
        return {"index": index, "delta": delta, "logprobs": log_probs, "finish_reason": reason, "colm": colm}


_NOTHING: dict[str, Any] = {
    **{name: [] for name in ("tokens", "pieces", "sources", "p_defer", "threshold", "check")},
    "expert_calls": 0,
    "finish_reason": "length",
}


async def _answer(server: Server, request: Request, asked: "_Completions | _Chat") -> Response:
    """Return the answers to a request, at once or as a stream."""
    run = _Run(server, asked, await asyncio.to_thread(asked.encoded))
    if asked.body.stream:
        run.submit()  # before the headers, so that a refusal has its status
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(run.stream(), media_type="text/event-stream", headers=headers)
    work = asyncio.create_task(run.whole())
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            return Response(status_code=499)
        return JSONResponse(work.result())
    finally:
        gone.cancel()
        work.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Run:
    """A request's way through the service."""

    def __init__(self, server: Server, asked: "_Completions | _Chat", wanted: list[Wanted]):
        self._server, self._asked, self._wanted = server, asked, wanted
        self._begun = asked.until - server.settings.deadline
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._answers: dict[int, Generation] = {}
        self._job: Job | None = None
        self._first: float | None = None

    def submit(self) -> None:
        """Hand the requests to the service.

        Raises:
          ApiError: it has too many, or ends.
        """
        loop, asked = asyncio.get_running_loop(), self._asked
        if asked.tokens == 0:
            return

        def tell(event: Event | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        wanted = [replace(each, stream=bool(asked.body.stream)) for each in self._wanted]
        try:
            self._job = asked.service.submit(wanted, tell)
        except Busy:
            raise ApiError(429, "too many requests wait; try again later", code="overloaded", headers=_RETRY) from None
        except Draining:
            raise ApiError(503, "the server is being stopped", headers=_RETRY) from None
        self._server.metrics.asked([len(each.prompt) for each in self._wanted[:: asked.count]])

    @property
    def _time_left(self) -> float:
        return self._asked.until - time.monotonic()

    async def _next(self, timeout: float) -> Event | None:
        """Return the next event; None after `timeout` seconds.

        Raises:
          ApiError: the deadline is over, or the service failed.
        """
        try:
            event = await asyncio.wait_for(self._events.get(), max(0.0, min(timeout, self._time_left)))
        except TimeoutError:
            if self._time_left <= 0:
                raise _late(self._asked.service) from None
            return None
        if isinstance(event, Failed):
            raise ApiError(500, "the devices failed; the server's log says why")
        if isinstance(event, Exception):
            raise ApiError(503, "the server is being stopped", headers=_RETRY)
        if event.tokens and self._first is None:
            self._first = time.monotonic()
            self._server.metrics.first_token.observe(self._first - self._begun)
        if event.generation is not None:
            self._answers[event.choice] = event.generation
            self._server.metrics.answered(event.generation)
        return event

    async def whole(self) -> dict[str, Any]:
        """Return the body of a response with all answers."""
        asked = self._asked
        async with self._counted():
            self.submit()
            while self._job is not None and len(self._answers) < len(self._wanted):
                await self._next(self._time_left)
            choices = [await asked.choice(i, each, self._answers.get(i)) for i, each in enumerate(self._wanted)]
        return asked.whole(choices, self._usage())

    def _usage(self) -> dict[str, int]:
        prompts = [len(each.prompt) for each in self._wanted[:: self._asked.count]]
        return answers.usage(prompts, list(self._answers.values()))

    async def stream(self) -> AsyncIterator[str]:
        """Yield the events of a stream."""
        asked = self._asked
        try:
            async with self._counted():
                async for body in self._chunks():
                    yield ": ping\n\n" if body is None else _event(body)
        except ApiError as error:
            yield _event(error.body)
            return
        if asked.gives_usage:
            yield _event(asked.part([], self._usage()))
        yield "data: [DONE]\n\n"

    async def _chunks(self) -> AsyncIterator[dict[str, Any] | None]:
        """Yield the bodies of chunks; None where nothing came for a while."""
        asked = self._asked
        for index, each in enumerate(self._wanted):
            if choices := asked.begin(index, each):
                yield asked.part(choices)
        told = dict.fromkeys(range(len(self._wanted)), 0)  # calls of experts that chunks have told of
        shown = {index: len(asked.echo_of(index // asked.count, each)) for index, each in enumerate(self._wanted)}
        written: dict[int, list[int]] = {index: [] for index in told}
        while self._job is not None and len(self._answers) < len(self._wanted):
            event = await self._next(self._server.settings.ping)
            if event is None:
                yield None
                continue
            index = event.choice
            if event.tokens:
                own, text = [token.token for token in event.tokens], "".join(token.text for token in event.tokens)
                begin = len(self._wanted[index].prompt) + len(written[index])
                written[index] += own
                colm = answers.of_tokens(event.tokens)
                told[index] += colm["expert_calls"]
                found = await self._log_probs(index, written[index], begin, shown[index], event)
                shown[index] += len(text)
                yield asked.part([asked.piece(index, text, colm, found, None)])
            if (answer := event.generation) is not None:
                colm = {**answers.of_tokens(()), **answers.ending(answer)}
                colm["expert_calls"] = answer.expert_calls - told[index]
                yield asked.part([asked.piece(index, "", colm, None, answers.finish_reason(answer))])

    async def _log_probs(self, index: int, written: list[int], begin: int, offset: int, event: Event) -> Any:
        """Return the log-probabilities of a chunk's tokens, where they are asked for."""
        asked, prompt = self._asked, self._wanted[index].prompt
        if asked.log_probs is None:
            return None
        ids = [*prompt, *written]
        found = await asked.found(ids)
        if isinstance(asked, _Chat):
            return found.chat(begin, len(ids), asked.log_probs)
        pieces = [token.text for token in event.tokens]
        return found.completions(begin, len(ids), asked.log_probs, offset, pieces)

    @contextlib.asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        """Count how the request ends, and free its slots where it ends early."""
        outcome, metrics, route = "cancelled", self._server.metrics, self._asked.route
        self._server.active += 1
        try:
            yield
            outcome = "finished"
        except ApiError as error:
            outcome = {504: "deadline", 429: "refused", 503: "refused"}.get(error.status, "failed")
            error.counted = True
            raise
        finally:
            self._server.active -= 1
            if self._job is not None and len(self._answers) < len(self._wanted):
                self._asked.service.cancel(self._job)
            took = time.monotonic() - self._begun
            metrics.requests.labels(route, outcome).inc()
            metrics.whole.labels(route).observe(took)
            tokens = sum(len(answer.tokens) for answer in self._answers.values())
            if self._first is not None and tokens > 1:
                metrics.per_token.observe((time.monotonic() - self._first) / (tokens - 1))
            logger.info(
                "request",
                extra={
                    "fields": {
                        "id": self._asked.id,
                        "route": route,
                        "outcome": outcome,
                        "seconds": round(took, 4),
                        "strategy": self._asked.strategy,
                        "answers": len(self._wanted),
                        **self._usage(),
                    }
                },
            )


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
