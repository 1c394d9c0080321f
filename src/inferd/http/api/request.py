"""The common form of every API's request (turns of typed blocks as in v2, and options), and of its answer.

A ``Dialect`` turns the events of the daemon's answer into the bytes of one API. It does no I/O and serves one
answer.
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
    """A request for an answer. ``turns`` and ``options`` are in the form of v2. Without ``max_tokens`` the
    answer may use the whole context. ``one_call`` keeps only the first tool call. ``keep_alive`` is the time
    in seconds for which the model stays loaded after the request, negative for always. ``ignored`` names the
    parts of the request that have no effect here, for the log; ``num_ctx`` is the context that a client of
    Ollama asks for."""

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

    A streamed answer calls ``start``, then ``loading`` while the model is loaded, then ``event`` for each
    event, then ``end`` or ``failed``. Any other answer calls ``whole``.
    """

    api: ClassVar[Api]
    media_type: ClassVar[str]
    generation: Generation

    @property
    def silence(self) -> bytes:
        """The keep-alive of a silent stream, to be sent at once; empty if the format has none."""
        return b""

    def loading(self, step: str) -> bytes:
        """A step of the load of the model that the stream waits for, as a comment and a keep-alive."""
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
    """The text of an answer's blocks of one kind, ``text`` or ``thinking``."""
    return "".join(block["text"] for block in done.content if block["type"] == kind)


def calls_of(done: MessageDone) -> list[dict[str, Any]]:
    """The ``tool_use`` blocks of an answer."""
    return [dict(block) for block in done.content if block["type"] == "tool_use"]


def reasoning_tokens(done: MessageDone) -> int:
    """The tokens of the thinking, which the daemon does not count: its share of the answer's characters."""
    thought = len(text_of(done, "thinking"))
    if not thought:
        return 0
    rest = len(text_of(done, "text")) + sum(len(str(call["input"])) for call in calls_of(done))
    return round(done.output_tokens * thought / (thought + rest))
