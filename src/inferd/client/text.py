"""Text answers over the v1 protocol: first the tokens as they arrive, then the whole answer.

A request that is too long for a v1 line is sent over the v2 protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from inferd.client import messages
from inferd.client.protocol import PendingRequest
from inferd.errors import UsageError


class Sampling(TypedDict, total=False):
    """The options of a generation. If an option is absent or ``None``, the daemon's default applies."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    max_tokens: int | None
    seed: int | None
    stop: list[str] | tuple[str, ...] | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    grammar: str | None
    json_schema: Mapping[str, Any] | None
    schema_lenient: bool | None
    priority: Literal["interactive", "batch"] | None
    deadline_ms: int | None
    session: str | None
    model: str | None
    lora: str | None
    keep_alive: float | None
    cache: bool | None
    model_defaults: bool | None


def given(options: Sampling, kind: type[Sampling] = Sampling) -> dict[str, object]:
    """Returns the options to send: all that are not ``None``.

    Raises TypeError for an option that ``kind`` does not have, and UsageError for a number that is not
    finite.
    """
    for name in options.keys() - kind.__annotations__.keys():
        raise TypeError(f"a generation has no option {name!r}")
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} must be a finite number, not {value}")
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer. A piece never ends within a character."""

    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of an answer: its whole text, the reason why the answer ended, its token counts, and its
    timings in milliseconds.

    ``unenforced`` lists the parts of the JSON Schema that were checked only at the end of the answer.
    """

    content: str
    stop_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    backend: str = ""
    model: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    unenforced: tuple[str, ...] = ()


class TextRequest(PendingRequest[Token, Done]):
    """A request for text over the v1 protocol."""

    def event(self, kind: str, frame: Mapping[str, Any]) -> Token | Done:
        if kind == "token":
            return Token(frame["content"])
        if kind != "done":
            raise LookupError(kind)
        usage = frame["usage"]
        self.done = Done(
            content=frame["content"],
            stop_reason=frame["stop_reason"],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            cached_tokens=usage.get("cached_tokens", 0),
            backend=frame.get("backend", ""),
            model=frame.get("model", ""),
            timings=frame.get("timings") or {},
            unenforced=tuple(frame.get("unenforced", ())),
        )
        return self.done


_STOP_REASONS = {"end_turn": "end", "stop_sequence": "end", "max_tokens": "length"}


class LongTextRequest(PendingRequest[Token, Done]):
    """A request for text over the v2 protocol, which sends the longest texts as attachments. The reply yields
    the same events as a v1 reply."""

    def __init__(self, inner: messages.MessagesRequest) -> None:
        self._id = inner._id
        self._inner = inner
        self.pieces = self._inner.pieces
        self._texts: list[str] = []

    def event(self, kind: str, frame: Mapping[str, Any]) -> Token | Done | None:
        event = self._inner.event(kind, frame)
        if isinstance(event, messages.Text):
            self._texts.append(event.text)
            return Token(event.text)
        if not isinstance(event, messages.MessageDone):
            return None
        self.done = Done(
            content="".join(self._texts),
            stop_reason=_STOP_REASONS.get(event.stop_reason, event.stop_reason),
            prompt_tokens=event.input_tokens,
            completion_tokens=event.output_tokens,
            cached_tokens=event.cached_tokens,
            backend=event.backend,
            model=event.model,
            timings=event.timings,
            unenforced=event.unenforced,
        )
        return self.done
