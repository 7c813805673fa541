"""Who may ask: clients with the key, and no web page but the server's own."""

import hmac
from base64 import b64decode
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from colm_jax.serving.errors import ApiError
from colm_jax.serving.state import Server


class Guard:
    """Asks for the key, on every route but /health, and keeps out what other web pages send through a browser.

    A page elsewhere can send a request without asking (a form, or JSON as plain text), and can make a name of its own
    resolve to this machine. Such requests have an Origin, or a Host, that is not this server's.
    """

    def __init__(self, app: ASGIApp, server: Server):
        """Stand before an application."""
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        error = self._foreign(scope)
        if error is None and self._allowed(scope):
            await self._app(scope, receive, send)
            return
        error = error or ApiError(
            401, "wrong or missing API key: send it as Authorization: Bearer KEY", code="invalid_api_key"
        )
        headers = {"WWW-Authenticate": 'Basic realm="colm", charset="UTF-8"' if scope["path"] == "/" else "Bearer"}
        self._server.metrics.requests.labels("other", str(error.status)).inc()
        await JSONResponse(error.body, error.status, headers if error.status == 401 else None)(scope, receive, send)

    def _foreign(self, scope: Scope) -> ApiError | None:
        """Return why a request from another web page is refused; None: it is none."""
        host, origin = _header(scope, b"host").decode("latin-1"), _header(scope, b"origin").decode("latin-1")
        if self._server.hosts and _name_of(host) not in self._server.hosts:
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


def _name_of(host: str) -> str | None:
    """Return the name in a Host header, without the port; None where it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _header(scope: Scope, name: bytes) -> bytes:
    """Return a header of a request; b"" where it has none."""
    return next((value for each, value in scope["headers"] if each == name), b"")
