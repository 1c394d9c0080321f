"""The answers of a backend: the events of a stream, vectors and scores. All of them are immutable."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from inferd.engine.requests import ToolCall

StopReason = Literal["end", "stop", "length", "tool_use", "cancelled", "error"]
"""``end``: the model ended its turn. ``stop``: a stop string appeared. ``length``: the token limit or the
context was reached."""


class Usage(Struct, frozen=True):
    """The token counts of a request. ``cached_tokens`` is the part of the prompt that came from the KV
    cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class CacheUse(Struct, frozen=True):
    """The effect of a backend's prefix cache on a request.

    ``miss`` is empty if at least half of the prompt came from the cache. Otherwise ``miss`` is the reason:
    ``first`` (no similar prompt was computed before), ``changed`` (the prompt differs early), ``evicted``,
    ``other user``, ``opted out``, or ``model`` (the state was computed for another model, build or context).
    ``held_bytes`` is the memory that the cache uses outside the slots. ``held_tokens`` is the number of
    tokens in that memory and in idle slots.
    """

    miss: str
    held_bytes: int
    held_tokens: int = 0


class DraftUse(Struct, frozen=True):
    """How many draft tokens speculative decoding computed, and how many of them it accepted."""

    drafted: int
    accepted: int


class Timings(Struct, frozen=True):
    """The times of a request in milliseconds: for the prompt (``prefill_ms``), for the answer
    (``decode_ms``), and until the first text (``ttft_ms``). ``ttft_ms`` begins when the backend takes the
    request. ``tokens_per_second`` is the speed of decoding."""

    prefill_ms: float
    decode_ms: float
    ttft_ms: float
    tokens_per_second: float


class Text(Struct, frozen=True):
    """A piece of the answer."""

    text: str


class Thinking(Struct, frozen=True):
    """A piece of the model's thinking before the answer."""

    text: str


class ToolUse(Struct, frozen=True):
    """A complete tool call."""

    call: ToolCall


class Frames(Struct, frozen=True):
    """The bytes of one or more token frames, built from the :class:`FrameTemplate` in the request's
    ``frame``."""

    data: bytes


class Done(Struct, frozen=True):
    """The end of a stream.

    ``content`` is the whole answer, escaped as inside a JSON string (UTF-8, without quotes), or ``None`` if
    the backend sent the answer as :class:`Text` events. ``tool_missing`` means that a tool call was required
    and the answer ended without one. ``unenforced`` lists the schema keywords that did not constrain the
    answer. Each item is the tool's name (empty for the answer's own schema), ``#``, and a JSON pointer.
    ``logprobs`` holds the log probabilities of those tokens that were in no frame. They are JSON objects,
    separated by commas.
    """

    stop_reason: StopReason
    usage: Usage
    timings: Timings | None = None
    content: bytes | None = None
    tool_missing: bool = False
    unenforced: tuple[str, ...] = ()
    cache: CacheUse | None = None
    drafts: DraftUse | None = None
    logprobs: bytes = b""


Event = Text | Thinking | ToolUse | Frames | Done


class Embeddings(Struct, frozen=True):
    """One vector for each input. ``vectors`` holds the vectors one after another, each as ``width``
    little-endian float32 numbers."""

    vectors: bytes
    width: int
    input_tokens: int


class Ranking(Struct, frozen=True):
    """One score for each document, in the documents' order. A higher score is better."""

    scores: tuple[float, ...]
    input_tokens: int
