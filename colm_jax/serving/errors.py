"""Errors of the API, in OpenAI's shape."""

from typing import Any

RETRY = {"Retry-After": "1"}  # header of an error that passes


class ApiError(Exception):
    """What a client gets in place of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        """Keeps what is sent.

        Args:
          status: of HTTP.
          message: what is wrong, in one line.
          param: the field of the request, or None.
          code: OpenAI's name for it, or None.
          headers: of the response.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers or {}
        self.counted = False  # in the metrics already

    @property
    def body(self) -> dict[str, Any]:
        """The response's body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def kind(self) -> str:
        """OpenAI's type of the error."""
        names = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return names.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a field that is wrong."""
    return ApiError(400, message, param, code)
