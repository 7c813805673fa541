"""The API over HTTP: OpenAI's routes, tokens, health, metrics and the page. Nothing here touches a device."""

import asyncio
import secrets
import time
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from colm_jax.errors import UserError
from colm_jax.serving import answers
from colm_jax.serving.asked import Chat, Completions, check_ids, check_length, plain, read_candidates
from colm_jax.serving.errors import ApiError, bad_request
from colm_jax.serving.guard import Guard
from colm_jax.serving.run import answer
from colm_jax.serving.schema import (
    CandidatesBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    check_model,
    parse,
)
from colm_jax.serving.service import Service
from colm_jax.serving.state import Server

# Beside the policy by which the page's own script and style run, and nothing else.
_PAGE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

T = TypeVar("T", bound=BaseModel)


def create_app(server: Server) -> FastAPI:
    """Return the application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, server=server)
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
        server.metrics.requests.labels(_route(request), str(error.status_code)).inc()
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        server.metrics.requests.labels(_route(request), "500").inc()
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
        return await answer(server, request, Completions(server, await _body(server, request, CompletionBody)))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(server, request, Chat(server, await _body(server, request, ChatBody)))

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
        check_ids(body.tokens, tokenizer.size, "tokens")
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
        check_ids(body.tokens, len(service.team.allowed), "tokens")
        check_length(len(body.tokens), service.context, "tokens")
        found = await read_candidates(service, body.tokens, time.monotonic() + server.settings.deadline)
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
            "max_tokens": server.settings.max_tokens,
            "eos_ids": list(team.tokenizer.eos_ids),
        },
    }


def _tokenize(service: Service, body: TokenizeBody) -> dict[str, Any]:
    tokenizer = service.team.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", "prompt")
    try:
        if body.messages is not None:
            ids = list(service.team.units.prompts({"messages": plain(body.messages)}, "messages").base)
        else:
            assert body.prompt is not None
            ids = (tokenizer.encode_prompt if body.add_special_tokens else tokenizer.encode_plain)(body.prompt)
    except UserError as error:
        raise bad_request(str(error), "prompt" if body.messages is None else "messages") from None
    found: dict[str, Any] = {"count": len(ids), "max_model_len": service.context, "tokens": ids}
    if body.return_token_strs:
        found["token_strs"] = tokenizer.backend.convert_ids_to_tokens(ids)
    return found
