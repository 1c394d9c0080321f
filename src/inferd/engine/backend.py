"""The interface between the daemon and its backends.

``generate`` raises a typed error before any output, or returns a :class:`Stream` of events that ends with
exactly one :class:`Done`. A stream that ends without ``Done`` is a failure of the backend. Every wire surface
presents the same events, so a backend knows no wire format. A :class:`FrameTemplate` lets a backend with its
own fast path wrap its text in the bytes of a frame without knowing their meaning.

(Over 400 lines, because it is one interface: the data of requests and events, and the two classes that carry
them.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

from inferd.errors import EmbedUnsupported, RerankUnsupported
from inferd.sampling import NOTHING_GIVEN, SamplingParams

StopReason = Literal["end", "stop", "length", "tool_use", "cancelled", "error"]
"""``end``: the model ended its turn; ``stop``: a stop string; ``length``: budget or context ran out."""


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """An image or a sound in a message.

    ``kind`` is ``image`` or ``audio``. With a ``mime`` type ``data`` is an encoded file; without one it is
    ``width`` x ``height`` interleaved RGB bytes, or little-endian float32 mono samples at ``sample_rate`` Hz.
    """

    kind: Literal["image", "audio"]
    data: memoryview
    mime: str = ""
    width: int = 0
    height: int = 0
    sample_rate: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made; ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; ``schema`` is the JSON Schema of its arguments as JSON text."""

    name: str
    description: str
    schema: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation.

    ``role`` is ``system``, ``user``, ``assistant``, or ``tool`` for the result of the call ``tool_call_id``.
    ``content`` is text, or texts and media in order. An assistant's turn may carry its ``thinking`` and
    ``tool_calls``.
    """

    role: str
    content: str | tuple[str | Media, ...]
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class FrameTemplate:
    """The bytes before and after the JSON-escaped text of a token frame.

    If the request asks for probabilities, ``opening`` and the records of the tokens follow the text.
    """

    prefix: bytes
    suffix: bytes
    opening: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A validated request to a backend.

    A ``max_tokens`` of ``None`` leaves the limit to the backend. ``json_schema`` is the schema as JSON text
    and excludes ``grammar`` (GBNF). ``schema_lenient`` drops a keyword that cannot be enforced, if the
    finished answer can be checked for it. ``frame`` is ``None`` if the client wants no token frames. Requests
    of one ``scope`` may reuse each other's computed prefixes, unless ``cache`` is false; ``session`` is the
    client's name for the conversation. ``model_defaults`` fills settings that ``sampling`` leaves open with
    the publisher's recommendation. ``priority`` (``interactive`` or ``batch``) is for a backend with its own
    queue.

    ``typed`` asks for thinking and tool calls as separate events; without it the model answers at once, in
    text. ``thinking`` ``None`` leaves that to the model. ``tool_choice`` is ``auto``, ``none`` or
    ``required``; with a ``tool_name`` that tool is required. ``lora`` names an adapter of the model, empty
    for none.

    ``raw``: the text of the only message is the whole prompt, without a template; with a ``suffix`` the model
    fills in the middle. ``begun``: the last message is the beginning of the answer. ``logprobs`` asks for the
    probability of each token and of that many alternatives. None of these combines with tools or thinking.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    sampling: SamplingParams = NOTHING_GIVEN
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""
    schema_lenient: bool = False
    session: str = ""
    scope: str = ""
    cache: bool = True
    model_defaults: bool = False
    priority: str = "interactive"
    frame: FrameTemplate | None = None
    typed: bool = False
    thinking: bool | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_name: str = ""
    lora: str = ""
    raw: bool = False
    suffix: str | None = None
    begun: bool = False
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; ``cached_tokens`` of the prompt came from the KV cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CacheUse:
    """The effect of a backend's prefix cache on a request.

    ``miss`` is empty if the cache had at least half of the prompt, else the reason: ``first`` (no similar
    prompt was computed), ``changed`` (an early difference), ``evicted``, ``other user``, ``opted out``, or
    ``model`` (computed for another model, build or context). ``held_bytes`` is the cache's current memory
    outside the slots; ``held_tokens`` are the tokens in idle slots and in that memory.
    """

    miss: str
    held_bytes: int
    held_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DraftUse:
    """Speculative decoding: draft tokens computed, and accepted."""

    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds from the moment the backend took the request; tokens per second of decoding."""

    prefill_ms: float
    decode_ms: float
    ttft_ms: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of the model's thinking before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A complete tool call."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Frames:
    """One or more finished token frames, built from the request's :class:`FrameTemplate`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Done:
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


class Stream(ABC, AsyncIterator[Event]):
    """The events of one request, pulled by the session.

    A backend pauses a stream that is not pulled (a slow client) without slowing the others. ``__anext__``
    raises a failure after the start as one of ``generate``'s errors, which ends the stream.
    """

    def prompt_read(self) -> float | None:
        """The share of the prompt, 0 to 1, that has been computed; ``None`` if it is not known."""
        return None

    @abstractmethod
    def cancel(self) -> None:
        """Ends the request soon: the remaining events, then ``Done("cancelled")``, still arrive."""

    @abstractmethod
    def close(self) -> None:
        """Drops the request and its output. Idempotent; never blocks."""


class Finished(Stream):
    """The stream of a request that needs no decoding."""

    def __init__(self, done: Done) -> None:
        self._done: Done | None = done

    async def __anext__(self) -> Event:
        done, self._done = self._done, None
        if done is None:
            raise StopAsyncIteration
        return done

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        self._done = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts to embed, none empty; ``dimensions`` truncates vectors, ``task`` selects the family's prefix."""

    inputs: tuple[str, ...]
    dimensions: int | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input: rows of ``width`` little-endian float32 in one buffer."""

    vectors: bytes
    width: int
    input_tokens: int


@dataclass(frozen=True, slots=True)
class RankRequest:
    """Documents, none empty, to be scored against a query."""

    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """One score for each document, in order; higher is better."""

    scores: tuple[float, ...]
    input_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """The device of the model: ``kind`` is ``cpu``, ``cuda``, ``metal``, ``vulkan``, ``remote`` …

    ``cpu_variant`` is the variant of the CPU backend, which is used with a GPU, too; empty for a remote
    model.
    """

    kind: str = "cpu"
    gpu_layers: int = 0
    device_name: str = ""
    vram_total_bytes: int = 0
    cpu_variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The features of a backend; ``lora`` names its adapters. ``raw``: a request may bring its own prompt or
    a part of it."""

    v2: bool = False
    vision: bool = False
    audio: bool = False
    tools: bool = False
    thinking: bool = False
    embed: bool = False
    rerank: bool = False
    accelerator: Accelerator = Accelerator()
    n_ctx: int = 0
    n_parallel: int = 0
    audio_sample_rate: int = 0
    lora: tuple[str, ...] = ()
    logprobs: bool = False
    raw: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The process of a model: ``file_bytes`` is the size of its files, ``restarts`` counts since the daemon's
    start, ``last_end`` is the reason why the last process ended.

    ``silent_secs`` is the time without a sign of life, 0 while it is usual; ``problem`` is the reason why the
    model does not serve. ``cage`` gives each layer of the sandbox: ``yes``, or why it is missing.
    ``cache_disk_bytes`` is the size of the files of computed prompts; ``cache_files_removed`` counts removed
    damaged or foreign files.
    """

    pid: int = 0
    memory_bytes: int = 0
    file_bytes: int = 0
    restarts: int = 0
    last_end: str = ""
    silent_secs: float = 0.0
    problem: str = ""
    cage: dict[str, str] = field(default_factory=dict)
    cache_disk_bytes: int = 0
    cache_files_removed: int = 0


class Backend(ABC):
    """One configured backend: ``name`` of its config entry, ``kind``, ``model``."""

    name: str
    kind: str
    model: str

    @abstractmethod
    def ready(self) -> bool:
        """Whether the backend would serve ``generate`` now."""

    def alive(self) -> bool:
        """Whether the backend's threads still run; without them only a restart helps."""
        return True

    async def look(self) -> int | None:
        """Checks a remote backend's health. Returns its number of requests, of all clients; ``None`` if it
        does not report that. Raises Unavailable if it does not serve."""
        return None

    def engine_state(self) -> EngineState | None:
        """The state of the engine process, if the backend has one."""
        return None

    def on_crash_loop(self, call: Callable[[], None]) -> None:
        """Registers ``call``, called each time that the engine process has died too often."""
        return

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """The backend's features; constant once it is ready."""

    @abstractmethod
    async def start(self) -> None:
        """Attaches the backend to the running event loop; called once, before the first ``generate``."""

    @abstractmethod
    async def generate(self, request: GenerateRequest) -> Stream:
        """Starts a request.

        Raises ``InvalidRequest`` if the client must change the request, else ``NotReady``, ``Unavailable`` or
        ``BackendInternal``.
        """

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """The vectors of texts. Raises as ``generate``, and ``EmbedUnsupported``."""
        raise EmbedUnsupported(f"backend {self.name!r} cannot embed")

    async def rank(self, request: RankRequest) -> Ranking:
        """The scores of documents. Raises as ``generate``, and ``RerankUnsupported``."""
        raise RerankUnsupported(f"backend {self.name!r} cannot rerank")

    @abstractmethod
    async def close(self) -> None:
        """Ends every stream and frees the model. Idempotent."""
