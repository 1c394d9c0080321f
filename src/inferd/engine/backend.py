"""The interface between the daemon and its backends.

``requests.py`` defines the requests, ``events.py`` the answers. ``generate`` either raises a typed error
before any output, or returns a :class:`Stream` of events that ends with exactly one ``Done``. If a stream
ends without ``Done``, the backend has failed. The wire surfaces encode these events, so a backend knows no
wire format. For speed, a backend may build the frames of its text itself: a ``FrameTemplate`` contains the
bytes before and after the text of a frame. The backend need not know what these bytes mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, NamedTuple

from msgspec import Meta

from inferd.engine.events import Done, Embeddings, Event, Ranking
from inferd.engine.requests import EmbedRequest, GenerateRequest, RankRequest
from inferd.errors import EmbedUnsupported, RerankUnsupported


class Accelerator(NamedTuple):
    """The device that computes the model. ``kind`` is, for example, ``cpu``, ``cuda``, ``metal``, ``vulkan``
    or ``remote``. The GPU computes ``gpu_layers`` of the model's ``layers``. 0 ``layers`` means unknown.

    ``cpu_variant`` names the variant of llama.cpp's CPU backend, which llama.cpp also uses together with a
    GPU. It is empty for a remote model.
    """

    kind: str = "cpu"
    gpu_layers: int = 0
    device_name: str = ""
    vram_total_bytes: int = 0
    cpu_variant: str = ""
    layers: int = 0


class Capabilities(NamedTuple):
    """The features of a backend. ``lora`` lists the names of its LoRA adapters. ``raw`` means that a request
    may contain a finished prompt or the beginning of the answer."""

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


# Engine processes send these numbers. A negative one would let other models take memory that is not there.
Size = Annotated[int, Meta(ge=0)]
ByGpu = Annotated[Mapping[Annotated[str, Meta(min_length=1, max_length=64)], Size], Meta(max_length=64)]
"""Bytes by the name of a GPU. llama.cpp itself knows at most 16 GPUs."""


class Need(NamedTuple):
    """The memory in bytes that a model takes with a context of ``n_ctx`` tokens. ``here`` is the part in RAM,
    and ``gpus`` has the part on each GPU, by the GPU's name. Memory that a GPU shares with the processor
    counts in both places. ``layers`` is the number of layers on the GPUs. -1 means all layers, and that
    fewer are allowed."""

    n_ctx: Size
    here: Size
    gpus: ByGpu = MappingProxyType({})
    layers: Annotated[int, Meta(ge=-1)] = -1


class Needs(NamedTuple):
    """``sizes`` has the needs of a model, the largest context first. ``free`` has the free memory of each
    GPU, and ``all`` the whole memory, in bytes. Without a GPU, all three are empty."""

    sizes: Annotated[tuple[Need, ...], Meta(max_length=64)] = ()
    free: ByGpu = MappingProxyType({})
    all: ByGpu = MappingProxyType({})


class GpuRoom(NamedTuple):
    """The bytes that a part of a model may take on each GPU, by the GPU's name."""

    gpus: ByGpu


Grant = Callable[[Needs], Awaitable[Need | GpuRoom | None]]
"""Makes room for a model, and returns the size with which it may be loaded, or ``None`` for the size that its
entry sets. If the GPUs are too small for all layers, returns the room for fewer layers. Then it is called
again, with the needs of as many layers as fit. Raises an error if there cannot be enough room."""


class EngineState(NamedTuple):
    """The state of the engine process of a model. ``file_bytes`` is the size of the model's files.
    ``estimate_bytes`` is the memory that the process may need, or 0 between :meth:`Backend.rest` and
    :meth:`Backend.wake`. ``gpu_bytes`` is the memory that it may need on each GPU, by the GPU's name. If the
    process does not hold this memory yet or any more, ``loaded`` is false.
    ``private_bytes`` is the part of ``memory_bytes`` that no file backs. ``restarts``
    is the number of restarts since the daemon started. ``last_end`` is the reason why the last process ended.

    ``silent_secs`` is 0 unless the process is slow. Then it is the time since the first unanswered ping, or
    the time of the current step, whichever is longer. ``problem`` is the reason why the model does not serve.
    ``cage`` maps each layer of the sandbox to ``yes``, or to the reason why it is missing.
    ``cache_disk_bytes`` is the size of the prefix cache's files. ``cache_files_removed`` is the number of its
    files that were removed because they were damaged or made with another key.
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
    estimate_bytes: int = 0
    private_bytes: int = 0
    gpu_bytes: Mapping[str, int] = MappingProxyType({})
    loaded: bool = True

    @property
    def taken_bytes(self) -> int:
        """Returns the memory that the process takes, or will take once it has touched all its pages."""
        return max(self.estimate_bytes, self.memory_bytes)


class Stream(ABC, AsyncIterator[Event]):
    """The events of one request. The session pulls one event after the other.

    If a slow client keeps the session from pulling, the backend pauses this stream alone. If a request fails
    after its start, ``__anext__`` raises one of ``generate``'s errors, and the stream ends.
    """

    on_wait: Callable[[str, Mapping[str, object]], object] | None = None
    """Called before the first event, while the request waits at an upstream daemon. Gets the name and the
    details of each step."""

    def prompt_read(self) -> float | None:
        """Returns the processed share of the prompt, from 0 to 1, or ``None`` if it is not known."""
        return None

    @abstractmethod
    def cancel(self) -> None:
        """Asks for an early end: the stream still delivers the events so far, then ``Done("cancelled")``."""

    @abstractmethod
    def close(self) -> None:
        """Drops the request and its output. May be called again; never blocks."""


class Finished(Stream):
    """The stream of a request that needs no decoding. Its only event is ``done``."""

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
    """One configured backend. ``name`` is the name of its config entry."""

    name: str
    kind: str
    model: str

    @abstractmethod
    def ready(self) -> bool:
        """Returns whether the backend can serve a request now."""

    def alive(self) -> bool:
        """Returns false if the backend is broken, for example because its engine process cannot be started
        again. A reload of the configuration then replaces the backend."""
        return True

    async def look(self) -> int | None:
        """Checks the health of a remote backend's server.

        Returns the number of requests that the server has from all clients, or ``None`` if the server does
        not report it. Raises Unavailable if the server cannot be reached or reports that it does not serve.
        """
        return None

    def engine_state(self) -> EngineState | None:
        """Returns the state of the engine process, or ``None`` if the backend has none."""
        return None

    def on_crash_loop(self, call: Callable[[], None]) -> None:
        """Registers ``call``, which the backend calls when the engine process has died too often in a short
        time."""
        return

    def ask_first(self, grant: Grant, contexts: Sequence[int] = (), *, always: bool = False) -> bool:
        """Makes :meth:`start` await ``grant`` before the model takes memory of a GPU. With ``always``,
        ``start`` also awaits ``grant`` for a model on a CPU. ``contexts`` are the sizes to choose from, by
        default those of the entry. Returns false if ``start`` will not ask, because the model cannot take
        memory of a GPU or has RPC workers."""
        return False

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Returns the backend's features, which do not change once the backend is ready."""

    @abstractmethod
    async def start(self) -> None:
        """Attaches the backend to the running event loop. Called once, before the first ``generate``."""

    @abstractmethod
    async def generate(self, request: GenerateRequest) -> Stream:
        """Starts a request.

        Raises ``InvalidRequest`` if the fault is in the request. Raises ``NotReady``, ``Unavailable`` or
        ``BackendInternal`` if the fault is in the backend.
        """

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Returns the vectors of the texts. Raises ``generate``'s errors, and ``EmbedUnsupported``."""
        raise EmbedUnsupported(f"backend {self.name!r} cannot embed")

    async def rank(self, request: RankRequest) -> Ranking:
        """Returns the scores of the documents. Raises ``generate``'s errors, and ``RerankUnsupported``."""
        raise RerankUnsupported(f"backend {self.name!r} cannot rerank")

    async def rest(self) -> None:
        """Ends the engine process, to release its memory. Running requests fail. Later requests wait for
        :meth:`wake`."""
        return

    def wake(self) -> None:
        """Loads the model again after :meth:`rest`. The load runs in the background."""
        return

    @abstractmethod
    async def close(self) -> None:
        """Ends every stream and frees the model. May be called again."""
