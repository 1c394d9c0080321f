"""The answers of a backend: the events of a stream, vectors and scores. Immutable, as the requests are."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from inferd.engine.requests import ToolCall

StopReason = Literal["end", "stop", "length", "tool_use", "cancelled", "error"]
"""``end``: the model ended its turn; ``stop``: a stop string; ``length``: budget or context ran out."""


class Usage(Struct, frozen=True):
    """Token counts; ``cached_tokens`` of the prompt came from the KV cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class CacheUse(Struct, frozen=True):
    """The effect of a backend's prefix cache on a request.

    ``miss`` is empty if the cache had at least half of the prompt, else the reason: ``first`` (no similar
    prompt was computed), ``changed`` (an early difference), ``evicted``, ``other user``, ``opted out``, or
    ``model`` (computed for another model, build or context). ``held_bytes`` is the cache's current memory
    outside the slots; ``held_tokens`` are the tokens in idle slots and in that memory.
    """

    miss: str
    held_bytes: int
    held_tokens: int = 0


class DraftUse(Struct, frozen=True):
    """Speculative decoding: draft tokens computed, and accepted."""

    drafted: int
    accepted: int


class Timings(Struct, frozen=True):
    """Milliseconds from the moment the backend took the request; tokens per second of decoding."""

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
    """One or more finished token frames, built from the request's :class:`FrameTemplate`."""

    data: bytes


class Done(Struct, frozen=True):
    """The end of a stream.

    ``content`` is the whole answer as the inside of a JSON string (escaped, UTF-8, no quotes), or ``None``
    from a backend that sent the answer as :class:`Text` events. ``tool_missing``: a tool call was required
    and the budget ended before one. ``unenforced`` lists the keywords of the schema, or of a tool's schema,
    that did not constrain the answer: the tool's name or nothing, ``#``, and a JSON pointer. ``logprobs`` are
    records of tokens that no frame carried, JSON objects separated by commas.
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
    """One vector for each input: rows of ``width`` little-endian float32 in one buffer."""

    vectors: bytes
    width: int
    input_tokens: int


class Ranking(Struct, frozen=True):
    """One score for each document, in order; higher is better."""

    scores: tuple[float, ...]
    input_tokens: int
