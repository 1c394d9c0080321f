"""The common form of the generation requests of all APIs, and the base class of the APIs' answers. A request
has options, and turns of typed blocks as in the v2 protocol.

A ``Dialect`` converts the events of one answer of the daemon to the bytes of one API, without I/O.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from inferd.client.messages import Event, MessageDone
from inferd.http import stream
from inferd.http.failures import Api, Failure


@dataclass(kw_only=True)
class Generation:
    """A request for an answer. ``turns`` and ``options`` are in the form of the v2 protocol. Without
    ``max_tokens`` the answer may use the whole context. With ``one_call``, all tool calls but the first are
    dropped. ``keep_alive`` is how many seconds the model stays loaded after the request. A negative
    ``keep_alive`` means for ever. ``ignored`` names, for the log, the parts of the request that have no
    effect here. ``num_ctx`` is the context size that a request of Ollama's API asks for."""

    model: str
    turns: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stream: bool = False
    one_call: bool = False
    keep_alive: float | None = None
    num_ctx: int | None = None
    ignored: set[str] = field(default_factory=set)


class Dialect(ABC):
    """One answer in the format of an API.

    For a streamed answer, ``start`` is called first, then ``event`` for each event, and at last ``end`` or
    ``failed``. Between these calls, ``loading`` or ``silence`` may be used for a keep-alive. For an answer
    that is not streamed, only ``whole`` is called. If an error occurs before the first byte is sent, the
    error response does not come from the dialect.
    """

    api: ClassVar[Api]
    media_type: ClassVar[str]
    generation: Generation

    @property
    def silence(self) -> bytes:
        """The bytes of a keep-alive for a silent stream. Empty if the format has none."""
        return b""

    def loading(self, step: str) -> bytes:
        """Returns a keep-alive for a stream that waits until its model is loaded. A comment in it shows the
        ``step`` of the load."""
        return stream.comment(f"loading the model: {step}") + self.silence

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
    """Returns the text of all blocks of one kind, ``text`` or ``thinking``, in an answer."""
    return "".join(block["text"] for block in done.content if block["type"] == kind)


def calls_of(done: MessageDone) -> list[dict[str, Any]]:
    """Returns the ``tool_use`` blocks of an answer."""
    return [dict(block) for block in done.content if block["type"] == "tool_use"]


def reasoning_tokens(done: MessageDone) -> int:
    """Estimates the number of thinking tokens from the share of thinking in the answer's characters, because
    the daemon does not count these tokens."""
    thought = len(text_of(done, "thinking"))
    if not thought:
        return 0
    rest = len(text_of(done, "text")) + sum(len(str(call["input"])) for call in calls_of(done))
    return round(done.output_tokens * thought / (thought + rest))
