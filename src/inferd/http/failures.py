"""Failures, and how each API reports them: by the status, the retry headers, and a body in the form of the
API.

The table ``ROWS`` has one row for each kind of failure. The request's path selects the form of the body; the
headers do not matter. If a retry cannot help, the response has ``x-should-retry: false``, because the SDKs
otherwise retry after every status 5xx.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from inferd.errors import (
    ConnectionLost,
    DaemonUnreachable,
    InferdError,
    ProtocolError,
    RequestFailed,
    UsageError,
)

Api = Literal["openai", "anthropic", "ollama"]
DEFAULT_RETRY_SECS = 2
LONGEST_RETRY_SECS = 30


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of failure. ``status`` is the HTTP status. ``ollama`` is the status in Ollama's API, if it
    differs from ``status``."""

    status: int
    openai_type: str
    openai_code: str | None
    anthropic_type: str
    retry: bool = False
    ollama: int | None = None


_INVALID = "invalid_request_error"

ROWS: dict[str, Row] = {
    "invalid_request": Row(400, _INVALID, None, _INVALID),
    "prompt_too_long": Row(400, _INVALID, "context_length_exceeded", _INVALID),
    "unauthorized": Row(401, _INVALID, "invalid_api_key", "authentication_error"),
    "forbidden": Row(403, _INVALID, "forbidden", "permission_error"),
    "model_not_found": Row(404, _INVALID, "model_not_found", "not_found_error"),
    "not_found": Row(404, _INVALID, "not_found", "not_found_error"),
    "method_not_allowed": Row(405, _INVALID, "method_not_allowed", _INVALID),
    "timeout": Row(408, _INVALID, "request_timeout", "timeout_error"),
    "deadline_exceeded": Row(408, _INVALID, "deadline_exceeded", "timeout_error"),
    "too_large": Row(413, _INVALID, "request_too_large", "request_too_large"),
    "useless_answer": Row(422, _INVALID, "schema_violation", _INVALID),
    "queue_full": Row(429, "rate_limit_error", "queue_full", "rate_limit_error", retry=True, ollama=503),
    "rate_limited": Row(429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error", retry=True),
    "internal": Row(500, "server_error", None, "api_error"),
    "not_served": Row(501, _INVALID, "unsupported_endpoint", _INVALID),
    "unavailable": Row(503, "server_error", "unavailable", "overloaded_error", retry=True),
}

_KIND_OF_CODE = {
    "invalid_request": "invalid_request",
    "model_not_found": "model_not_found",
    "attachment_unsupported": "invalid_request",
    "embed_unsupported": "invalid_request",
    "rerank_unsupported": "invalid_request",
    "frame_too_large": "too_large",
    "queue_full": "queue_full",
    "deadline_exceeded": "deadline_exceeded",
    "backend_unavailable": "unavailable",
    "tool_call_malformed": "useless_answer",
    "schema_violation": "useless_answer",
    "internal": "internal",
}


class HttpFailure(InferdError):
    """A failure that the bridge itself detects. ``kind`` is a key of ``ROWS``."""

    def __init__(self, kind: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


class BadField(HttpFailure):
    """An invalid or unsupported field. ``param`` is the path of the field, or ``None`` if the body as a whole
    is invalid."""

    fault = "client"

    def __init__(self, param: str | None, message: str, code: str | None = None) -> None:
        super().__init__("invalid_request", message)
        self.param = param
        self.api_code = code


class UnknownModel(HttpFailure):
    """A request names a model that the daemon does not serve, or that is ``lacking`` what the request needs.
    ``model`` is ``None`` in the second case."""

    fault = "client"

    def __init__(self, model: str, served: str, lacking: str = "") -> None:
        fault = lacking or "is not served"
        super().__init__("model_not_found", f"the model {model!r} {fault}; served are: {served}")
        self.model = None if lacking else model


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failure as the client sees it."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    model: str | None = None
    retry_after: int | None = None
    numbers: tuple[int, int] | None = field(default=None)

    @property
    def row(self) -> Row:
        return ROWS[self.kind]

    def status(self, api: Api) -> int:
        return (self.row.ollama if api == "ollama" else None) or self.row.status

    def headers(self) -> list[tuple[str, str]]:
        """Returns the headers that tell the client whether and when to retry."""
        if not self.row.retry:
            return [("x-should-retry", "false")]
        seconds = DEFAULT_RETRY_SECS if self.retry_after is None else self.retry_after
        return [("retry-after", str(min(max(seconds, 1), LONGEST_RETRY_SECS)))]

    def openai(self) -> dict[str, Any]:
        """Returns the ``error`` object of OpenAI's APIs."""
        return {
            "message": self.message,
            "type": self.row.openai_type,
            "param": self.param,
            "code": self.code or self.row.openai_code,
        }

    def anthropic(self) -> dict[str, Any]:
        """Returns the ``error`` object of Anthropic's API. If a prompt is too long, the message has the
        wording of Anthropic's service, because agents parse the numbers in this message."""
        message = self.message
        if self.numbers is not None:
            message = f"prompt is too long: {self.numbers[0]} tokens > {self.numbers[1]} maximum"
        elif self.model is not None:
            message = f"model: {self.model}"
        return {"type": self.row.anthropic_type, "message": message}

    def body(self, api: Api, request_id: str) -> dict[str, Any]:
        """Returns the body of an error response."""
        if api == "anthropic":
            return {"type": "error", "error": self.anthropic(), "request_id": request_id}
        if api == "ollama":
            return {"error": self.ollama()}
        return {"error": self.openai()}

    def ollama(self) -> str:
        """Returns the error message of Ollama's API."""
        if self.kind == "queue_full":
            return f"server busy, please try again. {self.message}"
        if self.model is not None:
            return f"model '{self.model}' not found"
        return self.message


def of(error: BaseException) -> Failure:
    """Maps an exception to the failure that the client sees."""
    if isinstance(error, BadField):
        return Failure(kind=error.kind, message=str(error), param=error.param, code=error.api_code)
    if isinstance(error, UnknownModel):
        return Failure(kind=error.kind, message=str(error), param="model", model=error.model)
    if isinstance(error, HttpFailure):
        return Failure(kind=error.kind, message=str(error), retry_after=error.retry_after)
    if isinstance(error, RequestFailed):
        return _of_frame(error)
    if isinstance(error, DaemonUnreachable | ConnectionLost):
        return Failure(kind="unavailable", message=str(error))
    if isinstance(error, UsageError):
        return Failure(kind="invalid_request", message=str(error))
    if isinstance(error, ProtocolError):
        return Failure(kind="internal", message=str(error))
    return Failure(kind="internal", message="internal error; the log of the HTTP bridge says more")


def _of_frame(error: RequestFailed) -> Failure:
    details = error.details
    if details.get("reason") == "prompt_too_long":
        numbers = (int(details["tokens"]), int(details["limit"]))
        return Failure(kind="prompt_too_long", message=str(error), numbers=numbers)
    after = error.retry_after_secs
    retry_after = None if after is None else math.ceil(after)
    # An error frame has a code that every client knows, and the exact code as its reason.
    exact = str(details.get("reason", error.wire_code))
    kind = _KIND_OF_CODE.get(exact, "internal")
    code = exact if kind == "useless_answer" else None
    return Failure(kind=kind, message=str(error), code=code, retry_after=retry_after)


def cancelled(*, had_deadline: bool) -> Failure:
    """Returns the failure for an answer that the daemon ended early, because its deadline passed or the
    daemon is stopping."""
    if had_deadline:
        return Failure(kind="deadline_exceeded", message="the deadline passed while the request ran")
    return Failure(kind="unavailable", message="the daemon is stopping; the answer is not complete")
