"""The record of one HTTP request and its response, which the gate, the endpoints, the access log and the
metrics share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

from inferd.client.messages import MessageDone
from inferd.http.failures import Api, BadField
from inferd.http.keys import Key
from inferd.http.upstream import Asker

_PRIORITIES = ("interactive", "batch")
_MAX_DEADLINE_MS = 2**31 - 1


@dataclass(slots=True)
class Exchange:
    """One HTTP request and its response. ``api`` selects the form of errors. ``path`` is the path that the
    client sent. Once the request is ``routed``, ``path`` is the pattern of the endpoint."""

    method: str
    path: str
    api: Api
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    agent: str = ""
    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    started: float = field(default_factory=time.monotonic)
    asker: Asker = field(default_factory=lambda: Asker(caller=""))
    key: Key | None = None
    routed: bool = False
    status: int = 0
    error: str = ""
    stream: bool = False
    gone: bool = False
    model: str = ""
    ignored: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    ttft_secs: float | None = None

    def first_token(self) -> None:
        """Records the time from the start of the request to its first event."""
        if self.ttft_secs is None:
            self.ttft_secs = time.monotonic() - self.started

    def count(self, done: MessageDone) -> None:
        """Records the token counts of an answer."""
        self.input_tokens = done.input_tokens
        self.output_tokens = done.output_tokens
        self.cached_tokens = done.cached_tokens


def api_of(path: str) -> Api:
    """Returns the API that a path belongs to."""
    if path.startswith("/api/") or path == "/api":
        return "ollama"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Returns the request's headers. If several headers have the same name, returns the first of them."""
    return dict(reversed(scope["headers"]))


def header(headers: Mapping[bytes, bytes], name: bytes) -> str:
    """Returns the text of a header, or an empty string if the header is absent."""
    value = headers.get(name)
    return "" if value is None else value.decode("latin-1")


def asker_of(headers: Mapping[bytes, bytes], caller: str) -> Asker:
    """Combines ``caller`` with the priority, the deadline and the LoRA adapter from the request's headers.
    Raises BadField."""
    priority, deadline = header(headers, b"x-inferd-priority"), header(headers, b"x-inferd-deadline-ms")
    if priority and priority not in _PRIORITIES:
        raise BadField("X-Inferd-Priority", "X-Inferd-Priority must be interactive or batch")
    if deadline and not (
        deadline.isascii() and deadline.isdecimal() and 0 < int(deadline) <= _MAX_DEADLINE_MS
    ):
        raise BadField(
            "X-Inferd-Deadline-Ms", "X-Inferd-Deadline-Ms must be a number of milliseconds above 0"
        )
    return Asker(
        caller=caller,
        priority=priority or None,
        deadline_ms=int(deadline) if deadline else None,
        lora=header(headers, b"x-inferd-lora") or None,
    )
