"""Text (v1): tokens as they come, then the whole answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from inferd.client.channel import Reply


class Sampling(TypedDict, total=False):
    """How text is made and when; what is absent or ``None`` is left to the daemon's default."""

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
    priority: Literal["interactive", "batch"] | None
    deadline_ms: int | None
    session: str | None


def given(sampling: Sampling) -> dict[str, object]:
    """What was really given, ready for the wire. Raises TypeError for a name that is none of them."""
    for name in sampling.keys() - Sampling.__annotations__.keys():
        raise TypeError(f"a generation has no option {name!r}")
    return {name: value for name, value in sampling.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer; always whole characters."""

    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of an answer: all of it, why it ended, and what it cost (times in milliseconds)."""

    content: str
    stop_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    backend: str = ""
    model: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)


class Generation(Reply["Token | Done"]):
    """The events of one answer: tokens, then one :class:`Done`."""

    def _event(self, kind: str, frame: Mapping[str, Any]) -> Token | Done | None:
        if kind == "token":
            return Token(frame["content"])
        if kind != "done":
            return None
        usage = frame["usage"]
        return Done(
            content=frame["content"],
            stop_reason=frame["stop_reason"],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            cached_tokens=usage.get("cached_tokens", 0),
            backend=frame.get("backend", ""),
            model=frame.get("model", ""),
            timings=frame.get("timings") or {},
        )

    def _is_last(self, event: Token | Done) -> bool:
        return isinstance(event, Done)
