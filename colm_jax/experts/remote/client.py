"""One request to an endpoint: key, time limits, repetitions, redirects, and what the status of an answer means.

What may pass is tried again with exponential back-off and jitter: time-outs, lost connections, answers that are cut or
no JSON, status 408, 425, 429 (after the time that it names) and 5xx. What will not pass is an error at once.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from colm_jax.errors import UserError
from colm_jax.experts.remote.address import Address
from colm_jax.settings.remote import RemoteSettings

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = 3
_LARGEST = 1 << 28  # bytes of an answer
_LONGEST_WAIT = 30.0  # seconds between two attempts, unless the endpoint asks for more
_SHOWN = 200  # characters of an endpoint's own words in errors


class Lost(Exception):
    """The endpoint could not be reached, or gave no usable answer in time; a later request may succeed."""


class Refused(Exception):
    """The endpoint understood the request and declined it: a repetition would be declined too."""

    def __init__(self, status: int, message: str):
        super().__init__(f"status {status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Deadline:
    """A time by which all must be done."""

    end: float  # of time.monotonic()

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Return the one so many seconds from now."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then; negative after it."""
        return self.end - time.monotonic()


class Client:
    """Sends requests to one endpoint, from several threads."""

    def __init__(self, address: Address, settings: RemoteSettings):
        """Read the key from the environment; nothing is sent yet."""
        self.address, self._settings = address, settings
        self._key = address.key()
        limits = httpx.Limits(max_connections=settings.concurrency + 1)
        self._http = httpx.Client(limits=limits, headers={"Accept": "application/json"}, follow_redirects=False)
        if self._key is not None:
            self._http.headers["Authorization"] = f"Bearer {self._key}"

    def __repr__(self) -> str:
        """Return the address, and whether there is a key, but not the key."""
        return f"Client({str(self.address)!r}, {'with' if self._key else 'without'} a key)"

    @property
    def has_key(self) -> bool:
        """Whether a key is sent."""
        return self._key is not None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, url: str, deadline: Deadline) -> Any:
        """Return the JSON value at a URL; see `post`."""
        return self._repeated("GET", url, None, deadline, self._settings.retries + 1, lambda: None)

    def post(
        self,
        url: str,
        body: dict[str, Any],
        deadline: Deadline,
        *,
        attempts: int | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> Any:
        """Send a body and return the JSON value that is answered.

        Args:
          url: where to.
          body: what to send.
          deadline: of all attempts.
          attempts: most of them; None: as the settings say.
          before: called before every attempt.

        Raises:
          Lost: no usable answer in time.
          Refused: status 4xx, other than those that may pass.
          UserError: status 401, a redirect to another server, or a certificate that is not trusted.
        """
        most = self._settings.retries + 1 if attempts is None else attempts
        return self._repeated("POST", url, body, deadline, most, before)

    def _repeated(
        self, method: str, url: str, body: Any, deadline: Deadline, attempts: int, before: Callable[[], None]
    ) -> Any:
        """Try until there is an answer, the attempts are used up, or the next one would be too late."""
        for attempt in range(attempts):
            if deadline.left <= 0:
                raise Lost(f"{self.address}: the deadline passed before an answer")
            before()
            try:
                return self._once(method, url, body, deadline)
            except _MayPass as failure:
                wait = min(self._settings.backoff * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
                wait = wait if failure.wait is None else max(wait, failure.wait)
                words = f"{self.address}: {failure}"
                if attempt + 1 == attempts:
                    raise Lost(f"{words} (attempt {attempt + 1}, the last)") from None
                if wait >= deadline.left:
                    raise Lost(f"{words}; the deadline leaves no time for another attempt") from None
            time.sleep(wait)
        raise Lost(f"{self.address}: no attempt was allowed")

    def _once(self, method: str, url: str, body: Any, deadline: Deadline) -> Any:
        """Send one request, and follow redirects on the same server."""
        end = Deadline(min(deadline.end, time.monotonic() + self._settings.timeout))
        for _ in range(_REDIRECTS + 1):
            status, headers, content = self._exchange(method, url, body, end)
            if status not in (301, 302, 303, 307, 308):
                return self._value(status, headers, content)
            url = self._redirected(url, headers.get("location", ""), status, method)
        raise UserError(f"{self.address}: redirects in a circle; check the address")

    def _exchange(self, method: str, url: str, body: Any, end: Deadline) -> tuple[int, httpx.Headers, bytes]:
        """Return status, headers and content of one answer, which is whole by `end`."""
        with self._failures(end):
            timeout = httpx.Timeout(max(end.left, 0.001))
            with self._http.stream(method, url, json=body, timeout=timeout) as response:
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    if end.left <= 0:  # each part came in time, but not all of them
                        raise _MayPass("the answer was not complete in time")
                    if len(content) > _LARGEST:
                        raise _MayPass(f"the answer is longer than {_LARGEST} bytes")
                return response.status_code, response.headers, bytes(content)

    @contextmanager
    def _failures(self, end: Deadline) -> Iterator[None]:
        """Say what a failure of the connection means."""
        try:
            yield
        except httpx.TimeoutException:
            raise _MayPass("no answer in time") from None
        except httpx.TransportError as error:
            words = self._clean(str(error)) or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in words:
                raise UserError(
                    f"{self.address}: its certificate is not trusted ({words}); SSL_CERT_FILE names a file of "
                    "authorities to trust"
                ) from None
            raise _MayPass(f"the connection failed: {words}") from None
        except httpx.HTTPError as error:  # as content in an encoding that cannot be decoded
            raise _MayPass(f"the answer cannot be read: {type(error).__name__}") from None

    def _value(self, status: int, headers: httpx.Headers, content: bytes) -> Any:
        """Return the value of an answer, by its status."""
        if status in _AGAIN:
            raise _MayPass(f"status {status}: {self._words(content)}", _retry_after(headers.get("retry-after")))
        if status == 401:
            found = "was not accepted" if self._key else "is needed"
            raise UserError(
                f"{self.address}: authentication failed (status 401): a key {found}; set it in the environment "
                f"variable {' or '.join(self.address.key_variables)}"
            )
        if not 200 <= status < 300:
            raise Refused(status, self._words(content))
        try:
            return json.loads(content, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise _MayPass(f"the answer is no JSON: {self._words(content) or 'it is empty'}") from None

    def _redirected(self, url: str, target: str, status: int, method: str) -> str:
        """Return where a redirect on the same server leads; a key or a text is never sent to another one."""
        new = urljoin(url, target)
        if urlsplit(new)[:2] != urlsplit(url)[:2]:
            there = urlsplit(new)
            raise UserError(
                f"{self.address}: redirects to another server ({there.scheme}://{there.hostname}), which is not "
                "followed; give that address if you trust it"
            )
        if method != "GET" and status not in (307, 308):
            raise UserError(f"{self.address}: redirects to {urlsplit(new).path} with status {status}; give that path")
        return new

    def _words(self, content: bytes) -> str:
        """Return an endpoint's own message, shortened to one line."""
        text = content[: 1 << 16].decode("utf-8", "replace")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        for key in ("error", "message", "detail"):
            if isinstance(value, dict) and value.get(key):
                value = value[key]
        return self._clean(value if isinstance(value, str) else json.dumps(value))

    def _clean(self, text: str) -> str:
        """Return a text in one line, shortened, without the key."""
        text = text.replace(self._key, "***") if self._key else text
        line = " ".join(text.split())
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


class _MayPass(Exception):
    """A failure after which another attempt may succeed; `wait` seconds before it, if the endpoint says so."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
