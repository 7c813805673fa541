"""A request's way through the service, answered at once or as a stream."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from colm_jax.decoding.requests import Generation
from colm_jax.decoding.requests import Request as Wanted
from colm_jax.serving import answers
from colm_jax.serving.asked import NOTHING, Chat, Completions, busy, too_late
from colm_jax.serving.errors import RETRY, ApiError
from colm_jax.serving.service import Busy, Draining, Event, Failed, Job
from colm_jax.serving.state import Server

_GRACE = 5.0  # seconds after the deadline for the last event of a stream

logger = logging.getLogger("colm_jax.serving")


async def answer(server: Server, request: Request, asked: Completions | Chat) -> Response:
    """Return the answers to a request, at once or as a stream."""
    run = Run(server, asked, await asyncio.to_thread(asked.encoded))
    if asked.body.stream:
        try:
            run.submit()  # before the headers, so that a refusal has its status
        except ApiError as error:
            run.end(error)
            raise
        return _Stream(run)
    work = asyncio.create_task(run.whole())
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            run.end()
            while not work.done():  # Python 3.11's wait_for may pass over one
                work.cancel()
                await asyncio.wait({work}, timeout=1)
            return Response(status_code=499)
        return await asyncio.to_thread(JSONResponse, work.result())
    finally:
        gone.cancel()
        work.cancel()


class _Stream(StreamingResponse):
    """A stream, after which the request is ended, however the stream was."""

    def __init__(self, run: "Run"):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(run.stream(), media_type="text/event-stream", headers=headers)
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._run.time_left + _GRACE):  # a client that does not read holds up nothing
                await super().__call__(scope, receive, send)
        except TimeoutError:
            return
        finally:
            self._run.end()


async def _gone(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Run:
    """A request's way through the service."""

    def __init__(self, server: Server, asked: Completions | Chat, wanted: list[Wanted]):
        """Begin to work on the requests, which `encoded` has returned; `end` ends it."""
        self._server, self._asked, self._wanted = server, asked, wanted
        self._begun = asked.until - server.settings.deadline
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._answers: dict[int, Generation] = {}
        self._job: Job | None = None
        self._first: float | None = None
        self._ended = False
        server.active += 1

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
            raise busy() from None
        except Draining:
            raise ApiError(503, "the server is being stopped", headers=RETRY) from None
        self._server.metrics.asked([len(each.prompt) for each in self._wanted[:: asked.count]])

    @property
    def time_left(self) -> float:
        """Seconds until the deadline."""
        return self._asked.until - time.monotonic()

    async def _next(self, timeout: float) -> Event | None:
        """Return the next event; None after `timeout` seconds.

        Raises:
          ApiError: the deadline is over, or the service failed.
        """
        try:
            event = await asyncio.wait_for(self._events.get(), max(0.0, min(timeout, self.time_left)))
        except TimeoutError:
            if self.time_left <= 0:
                raise too_late(self._asked.service) from None
            return None
        if isinstance(event, Failed):
            raise ApiError(500, "the devices failed; the server's log says why")
        if isinstance(event, Exception):
            raise ApiError(503, "the server is being stopped", headers=RETRY)
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
        try:
            self.submit()
            while self._job is not None and len(self._answers) < len(self._wanted):
                await self._next(self.time_left)
            choices = [await asked.choice(i, each, self._answers.get(i)) for i, each in enumerate(self._wanted)]
            self.end(finished=True)
        except ApiError as error:
            self.end(error)
            raise
        finally:
            self.end()
        return asked.whole(choices, self._usage())

    def _usage(self) -> dict[str, int]:
        prompts = [len(each.prompt) for each in self._wanted[:: self._asked.count]]
        return answers.usage(prompts, list(self._answers.values()))

    async def stream(self) -> AsyncIterator[str]:
        """Yield the events of a stream."""
        asked = self._asked
        try:
            async for body in self._chunks():
                yield ": ping\n\n" if body is None else _event(body)
        except ApiError as error:
            self.end(error)
            yield _event(error.body)
            return
        self.end(finished=True)
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
        if self._job is None:  # nothing is to be written
            for index, each in enumerate(self._wanted):
                log_probs = (await asked.choice(index, each, None))["logprobs"]
                yield asked.part([asked.piece(index, "", NOTHING, log_probs, "length")])
        while self._job is not None and len(self._answers) < len(self._wanted):
            event = await self._next(self._server.settings.ping)
            if event is None:
                yield None
                continue
            index = event.choice
            if event.tokens:
                own, text = [token.token for token in event.tokens], "".join(token.text for token in event.tokens)
                written[index] += own
                echoed = len(asked.echo_of(index // asked.count, self._wanted[index]))
                colm = answers.of_tokens(event.tokens, shown[index] - echoed)
                told[index] += colm["expert_calls"]
                found = None
                if asked.log_probs is not None:
                    ids = [*self._wanted[index].prompt, *written[index]]
                    begin, read = len(ids) - len(own), await asked.found(ids)
                    found = await asyncio.to_thread(asked.of_chunk, read, begin, event.tokens, shown[index])
                shown[index] += len(text)
                yield asked.part([asked.piece(index, text, colm, found, None)])
            if (answer := event.generation) is not None:
                colm = {**answers.of_tokens(()), **answers.ending(answer)}
                colm["expert_calls"] = answer.expert_calls - told[index]
                yield asked.part([asked.piece(index, "", colm, None, answers.finish_reason(answer))])

    def end(self, error: ApiError | None = None, finished: bool = False) -> None:
        """Count how the request ended, and free its slots where it ended early; later calls do nothing.

        Args:
          error: that its client gets.
          finished: all was answered; with neither, the client went away.
        """
        if self._ended:
            return
        self._ended = True
        self._server.active -= 1
        outcome = "finished" if finished else "cancelled"
        if error is not None:
            outcome, error.counted = {504: "deadline", 429: "refused", 503: "refused"}.get(error.status, "failed"), True
        if self._job is not None and len(self._answers) < len(self._wanted):
            self._asked.service.cancel(self._job)
        metrics, route, now = self._server.metrics, self._asked.route, time.monotonic()
        metrics.requests.labels(route, outcome).inc()
        metrics.whole.labels(route).observe(now - self._begun)
        tokens = sum(len(answer.tokens) for answer in self._answers.values())
        if self._first is not None and tokens > 1:
            metrics.per_token.observe((now - self._first) / (tokens - 1))
        fields = {
            "id": self._asked.id,
            "route": route,
            "outcome": outcome,
            "seconds": round(now - self._begun, 4),
            "strategy": self._asked.strategy,
            "answers": len(self._wanted),
            **self._usage(),
        }
        logger.info("request", extra={"fields": fields})


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
