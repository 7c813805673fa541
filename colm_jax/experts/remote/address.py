"""Addresses of endpoints, http(s)://HOST:PORT/v1#NAME, and their keys, which come from the environment alone."""

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from colm_jax.errors import UserError

KEY_VARIABLE = "COLM_API_KEY"
_FORM = "http(s)://HOST:PORT/v1#NAME"
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where a model is served."""

    base: str  # of all paths of the API: http(s)://HOST:PORT/v1
    name: str  # of the model at the endpoint

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Return the address.

        Raises:
          UserError: what is missing in it, or should not be there.
        """
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UserError(f"{_shown(text)}: {error}; an endpoint is {_FORM}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise UserError(f"{_shown(text)}: no address of an endpoint, which is {_FORM}")
        if "@" in parts.netloc:
            raise UserError(
                f"{_shown(text)}: holds a user name or password; leave it out, and set {KEY_VARIABLE} in the "
                "environment"
            )
        if parts.query:
            raise UserError(f"{_shown(text)}: must not have a query ('?...'); an endpoint is {_FORM}")
        if not parts.fragment:
            raise UserError(f"{_shown(text)}: names no model; add it at the end, {_FORM}")
        netloc = f"[{host}]" if ":" in host else host
        netloc += "" if port is None else f":{port}"
        return cls(f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}", unquote(parts.fragment))

    def __str__(self) -> str:
        """Return the address as it is given."""
        return f"{self.base}#{self.name}"

    @property
    def root(self) -> str:
        """The server's own paths begin here, as /tokenize: the address without /v1."""
        return self.base.removesuffix("/v1")

    @property
    def host(self) -> str:
        """The host, without the port."""
        return urlsplit(self.base).hostname or ""

    @property
    def encrypted(self) -> bool:
        """Whether what is sent cannot be read on the way: by TLS, or because it does not leave the machine."""
        return self.base.startswith("https:") or self.host in _LOCAL

    @property
    def key_variables(self) -> tuple[str, str]:
        """The environment variables that may hold the key; the first that is set counts."""
        return f"{KEY_VARIABLE}_{re.sub(r'[^A-Z0-9]', '_', self.host.upper())}", KEY_VARIABLE

    def key(self) -> str | None:
        """Return the key; None where none is set."""
        return next((os.environ[name] for name in self.key_variables if os.environ.get(name)), None)


def _shown(text: str) -> str:
    """Return an address for errors, without a user name or password."""
    return re.sub(r"//[^/#?]*@", "//***@", text)
