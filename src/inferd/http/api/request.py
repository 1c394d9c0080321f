"""What every API's request becomes: turns of typed blocks (v2) and options, and how its answer is told.

A ``Dialect`` turns the events of the daemon's answer into the bytes of one API. It does no I/O and is used
for one answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from inferd.client.messages import Event, MessageDone
from inferd.http.failures import Api, Failure

ToolChoice = Literal["auto", "none", "required"]


@dataclass(kw_only=True)
class Generation:
    """A request for an answer. ``turns`` and ``options`` are in the form of v2; ``max_tokens`` ``None`` is up
    to the context. ``one_call``: at most one tool call is wanted. ``keep_alive`` is for how many seconds the
    model stays loaded behind the request, negative for always."""

    model: str
    turns: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stream: bool = False
    one_call: bool = False
    keep_alive: float | None = None


class Dialect(ABC):
    """One answer in the words of an API.

    When streamed: ``start``, then ``event`` for each event, then ``end`` or ``failed``. Otherwise ``whole``.
    """

    api: ClassVar[Api]
    media_type: ClassVar[str]
    silence: ClassVar[bytes] = b""
    """What is sent while there is nothing to say; empty where the form has no such thing."""

    generation: Generation

    @abstractmethod
    def start(self) -> bytes: ...

    @abstractmethod
    def event(self, event: Event) -> bytes: ...

    @abstractmethod
    def end(self, done: MessageDone) -> bytes: ...

    @abstractmethod
    def failed(self, failure: Failure) -> bytes: ...

    @abstractmethod
    def whole(self, done: MessageDone) -> dict[str, Any]: ...


def text_of(done: MessageDone, kind: str) -> str:
    """The text of an answer's blocks of one kind, ``text`` or ``thinking``."""
    return "".join(block["text"] for block in done.content if block["type"] == kind)


def calls_of(done: MessageDone) -> list[dict[str, Any]]:
    """The ``tool_use`` blocks of an answer."""
    return [dict(block) for block in done.content if block["type"] == "tool_use"]
