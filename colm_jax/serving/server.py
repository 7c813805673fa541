"""Running the server: it listens at once, says 503 while weights are loaded and programs compiled, then serves.

SIGTERM and Ctrl-C drain it: accepted requests are finished, new ones get 503.
"""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import uvicorn

from colm_jax.console import Progress
from colm_jax.errors import UserError
from colm_jax.serving.app import create_app
from colm_jax.serving.service import Service
from colm_jax.serving.state import Server
from colm_jax.team import CoLM

_POLL = 0.05  # seconds between two looks at what is left
_GRACE = 5  # seconds for connections on which nothing moves any more
_LAST = 2.0  # seconds for the answers of requests that were cut off


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0: any that is free.

    Raises:
      UserError: the address cannot be listened at.
    """
    with contextlib.ExitStack() as stack:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            found = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            found.listen(2048)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--host {host} --port {port}: cannot listen there: {reason}") from None
        stack.pop_all()
    return found


def serve(
    server: Server,
    where: socket.socket,
    load: Callable[[], CoLM],
    progress: Progress = lambda done, total: None,
) -> None:
    """Serve a team until a signal ends it; returns once all accepted requests are finished.

    Args:
      server: what the routes share; its service is made here.
      where: listening socket.
      load: returns the team; called in a thread of its own.
      progress: called while programs are compiled (`Service`).

    Raises:
      Exception: whatever `load`, or the compilation of programs, raises.
    """
    asyncio.run(_serve(server, where, lambda: Service(load(), server.settings, progress)))


async def _serve(server: Server, where: socket.socket, load: Callable[[], Service]) -> None:
    config = uvicorn.Config(
        create_app(server),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE,
        h11_max_incomplete_event_size=65536,
    )
    runner, stopping = _Runner(config), asyncio.Event()
    loop = asyncio.get_running_loop()
    with _signals(loop, stopping):
        serving = asyncio.create_task(runner.serve(sockets=[where]))
        loading = _Loading(load, server, loop)
        ended = asyncio.create_task(stopping.wait())
        try:
            first: set[asyncio.Future[Any]] = {serving, ended, loading.done}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if loading.done.done():
                loading.done.result()
                host, port = where.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"serving {server.name} at http://{shown}:{port}", flush=True)
                await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            await _drain(server)
        finally:
            runner.should_exit = True
            ended.cancel()
            await serving


async def _drain(server: Server) -> None:
    """Wait for accepted requests, as long as the settings allow."""
    service = server.service
    if service is None:
        return
    service.drain()
    await _finished(server, server.settings.drain)
    await asyncio.to_thread(service.stop)
    await _finished(server, _LAST)  # requests that were cut off are answered, too


async def _finished(server: Server, seconds: float) -> None:
    """Wait until no request is worked on, and at most so long."""
    until = time.monotonic() + seconds
    while server.active and time.monotonic() < until:
        await asyncio.sleep(_POLL)
    await asyncio.sleep(_POLL)  # for what is on its way to the clients


class _Runner(uvicorn.Server):
    """Uvicorn without its own handling of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> Iterator[None]:
    """Set `stopping` at SIGTERM or Ctrl-C."""
    names = [signal.SIGTERM, signal.SIGINT] if threading.current_thread() is threading.main_thread() else []
    before = {name: signal.getsignal(name) for name in names}
    for name in names:
        signal.signal(name, lambda *_: loop.call_soon_threadsafe(stopping.set))
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


class _Loading:
    """Weights being loaded and programs being compiled, in threads of their own."""

    def __init__(self, load: Callable[[], Service], server: Server, loop: asyncio.AbstractEventLoop):
        self.done: asyncio.Future[None] = loop.create_future()
        self._load, self._server, self._loop = load, server, loop
        threading.Thread(target=self._run, name="loading", daemon=True).start()

    def _run(self) -> None:
        try:
            self._server.service = service = self._load()
            self._server.metrics.watch(service)
            service.start()
            while not service.ready.wait(_POLL):
                if service.failure is not None:
                    raise service.failure
        except BaseException as error:
            self._tell(error)
        else:
            self._tell(None)

    def _tell(self, error: BaseException | None) -> None:
        def tell() -> None:
            if self.done.cancelled():
                return
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(tell)


class JsonLines(logging.Formatter):
    """Log lines as JSON objects: time, level, message, and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def log_to_stderr() -> None:
    """Write the server's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("colm_jax.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
