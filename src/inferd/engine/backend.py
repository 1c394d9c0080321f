"""The interface between the daemon and its backends.

The data of requests and answers is in ``requests.py`` and ``events.py``. ``generate`` raises a typed error
before any output, or returns a :class:`Stream` of events that ends with exactly one ``Done``. A stream that
ends without ``Done`` is a failure of the backend. Every wire surface presents the same events, so a backend
knows no wire format. A ``FrameTemplate`` lets a backend with its own fast path wrap its text in the bytes of
a frame without knowing their meaning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from inferd.engine.events import Done, Embeddings, Event, Ranking
from inferd.engine.requests import EmbedRequest, GenerateRequest, RankRequest
from inferd.errors import EmbedUnsupported, RerankUnsupported


class Accelerator(NamedTuple):
    """The device of the model: ``kind`` is ``cpu``, ``cuda``, ``metal``, ``vulkan``, ``remote`` …

    ``cpu_variant`` is the variant of the CPU backend, which is used with a GPU, too; empty for a remote
    model.
    """

    kind: str = "cpu"
    gpu_layers: int = 0
    device_name: str = ""
    vram_total_bytes: int = 0
    cpu_variant: str = ""


class Capabilities(NamedTuple):
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


class EngineState(NamedTuple):
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
    cage: Mapping[str, str] = MappingProxyType({})
    cache_disk_bytes: int = 0
    cache_files_removed: int = 0


class Stream(ABC, AsyncIterator[Event]):
    """The events of one request, pulled by the session.

    A backend pauses a stream that is not pulled (a slow client) without slowing the others. ``__anext__``
    raises a failure after the start as one of ``generate``'s errors, which ends the stream.
    """

    on_wait: Callable[[str, Mapping[str, object]], object] | None = None
    """Called with each step of a wait at an upstream daemon before the first event, and its details."""

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
        """Checks a remote backend's health.

        Returns the number of requests that the server has from all clients; ``None`` if the server does not
        report it. Raises Unavailable if the server does not serve.
        """
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
        """The vectors of texts. Raises the errors of ``generate``, and ``EmbedUnsupported``."""
        raise EmbedUnsupported(f"backend {self.name!r} cannot embed")

    async def rank(self, request: RankRequest) -> Ranking:
        """The scores of documents. Raises the errors of ``generate``, and ``RerankUnsupported``."""
        raise RerankUnsupported(f"backend {self.name!r} cannot rerank")

    @abstractmethod
    async def close(self) -> None:
        """Ends every stream and frees the model. Idempotent."""
