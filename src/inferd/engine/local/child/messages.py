"""The messages between the daemon and an engine process: their kinds and bodies.

The comment beside each kind describes its body. If the comment names a type, the body is a value of this
type, encoded as msgpack. *packed* means the form that :func:`pack` makes. A large packed body, such as a
request with media, is written to a memory file, and the file's descriptor is sent instead. The daemon does
not trust an engine: if a message has an unknown kind, or a body that does not decode to its type, the daemon
kills that engine.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from inferd import errors
from inferd.engine.backend import ByGpu, Capabilities
from inferd.engine.requests import GenerateRequest, Media, Message
from inferd.errors import BackendInternal, InferdError

# From the daemon.
LOAD = 1  # Load; descriptors: the files of the model, then the projector, the draft model, the adapters
GENERATE = 2  # packed GenerateRequest
EMBED = 3  # packed EmbedRequest
RANK = 4  # packed RankRequest
CANCEL = 5  # end the job soon; DONE still comes
DROP = 6  # end the job; only GONE comes
CREDIT = 7  # <I: bytes of the job's events that the daemon has passed on
PING = 8
KEPT = 9  # KeptState: an existing file
STATE = 10  # STATE_BODY; job: the number of a file; the file's descriptor, or none if the file is gone
SAVED = 11  # (number of the file or 0, numbers of deleted files): the answer to SAVE
FLUSH = 12  # save all states now
GRANTED = 13  # Granted: the answer to NEEDS
# From the engine.
WANTED = 14  # job: the number of a file whose state is needed
SAVE = 15  # LeavingState, with a descriptor of the state; without both: all states are saved after FLUSH
NEEDS = 16  # Needs: before a load that has contexts to choose from
LOAD_FAILED = 17  # Failure
PROGRESS = 18  # (phase, details)
LOADED = 19  # Loaded
LOG = 20  # (level, component, message, fields)
PONG = 21  # Pulse
FRAMES = 22  # raw bytes of token frames
TEXT = 23  # UTF-8
THINKING = 24  # UTF-8
TOOL_USE = 25  # ToolCall
DONE = 26  # Done; the job has ended
FAILED = 27  # Failure; the job has ended
GONE = 28  # the dropped job has ended
VECTORS = 29  # packed: (width, tokens), rows; the job has ended
SCORES = 30  # packed: (scores, tokens); the job has ended

ENDS = frozenset((DONE, FAILED, GONE, VECTORS, SCORES))
"""The kinds of a job's last message."""

WINDOW_BYTES = 64 << 10
"""An engine pauses a job when it has sent this many bytes of events without a CREDIT from the daemon."""

INLINE_BYTES = 128 << 10
"""A packed body up to this size is sent over the socket. A larger one goes in a memory file."""

CREDIT_BODY = struct.Struct("<I")
STATE_BODY = struct.Struct("<QQ")
"""The offset of the state in its file, and the size of the state in bytes."""
_LENGTH = struct.Struct("<I")

T = TypeVar("T")


class Adapter(msgspec.Struct, frozen=True):
    """A LoRA adapter. Requests use its ``name``. ``key`` identifies the combination of its file and its
    ``scale``."""

    name: str
    key: str
    scale: float = 1.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The model to load, and its options. The descriptors come with the message.

    ``memory_bytes`` is the memory that the model needs besides its mapped files; 0 sets no limit. ``name`` is
    the name of the config entry, and ``model`` is the name of the model. ``path`` is for display only.
    ``n_ctx`` is the context of one request in tokens. ``n_parallel`` is the maximum number of concurrent
    requests. If ``n_gpu_layers`` is -1, the GPU computes all layers. If ``threads`` is 0, the token loop
    chooses the number. ``flash_attention`` is ``auto``, ``on`` or ``off``. If ``embed`` is true, the model
    makes vectors or scores, and no text. ``None`` means true if ``vectors_wanted`` is set and the model's
    file names a pooling, and false otherwise. If ``embed_pooling`` is ``None``, the file's pooling applies.
    ``force_backend`` is the required kind of device.

    ``parts`` is the number of the model's files. ``projector`` and ``draft_model`` add one descriptor each.
    The last descriptors are those of the ``adapters``. ``cache_mib`` limits the memory of the prefix cache.
    ``ahead_tokens`` limits the tokens of the next prompt that are computed in advance, after an answer. With
    ``keep_thinking``, the prompt keeps earlier thinking that the client sends back, even if the template
    would omit it. ``drafts`` is ``auto``, ``on`` or ``off``. If ``files`` is set, the daemon keeps cache
    states in files. The engine sends a state to be saved in two cases: before the engine evicts the state,
    and when the engine has had no job for ``file_after_ms``. ``cage`` is a profile of
    :mod:`inferd.engine.local.child.cage`. ``chat_template`` is the Jinja text that replaces the model's own
    template. ``workers`` are the addresses of RPC workers, which compute a part of the model. If this host
    has no GPU, the workers compute the last ``worker_layers`` layers (-1: all). Otherwise the workers and the
    GPU together compute ``n_gpu_layers`` layers. A load waits at most ``worker_absent_secs`` for a worker
    that cannot be reached. If ``template_only`` is set, only the chat template is analysed. The process then
    loads no weights and serves no requests.

    Before a load that takes memory of a GPU, the engine sends what the model needs with each of the
    ``contexts``, and waits for :class:`Granted`. With ``asks``, it also asks before a load on a CPU. Without
    ``contexts`` or with ``workers``, it never asks.
    """

    name: str
    model: str
    path: str
    n_ctx: int = 8192
    n_parallel: int = 4
    n_gpu_layers: int = -1
    require_gpu: bool = False
    force_backend: str | None = None
    threads: int = 0
    n_batch: int = 512
    flash_attention: str = "auto"
    kv_cache_type: str = "f16"
    kv_unified: bool = False
    cache_mib: int = 1024
    files: bool = False
    file_after_ms: int = 15_000
    parts: int = 1
    ahead_tokens: int = 0
    keep_thinking: bool = False
    drafts: str = "auto"
    projector: bool = False
    draft_model: bool = False
    embed: bool | None = None
    vectors_wanted: bool = False
    embed_pooling: str | None = None
    embed_n_ctx: int = 2048
    log_level: int = 2
    cage: str = "cpu"
    memory_bytes: int = 0
    chat_template: str = ""
    adapters: tuple[Adapter, ...] = ()
    workers: tuple[str, ...] = ()
    worker_layers: int = -1
    worker_absent_secs: float = 0.0
    template_only: bool = False
    contexts: tuple[int, ...] = ()
    asks: bool = False


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """The context and the number of GPU layers to load. If ``room`` is set, the engine loads nothing yet. It
    finds how many layers fit into ``room``, the bytes on each GPU, and asks again with what they need."""

    n_ctx: int = 0
    layers: int = -1
    room: ByGpu | None = None


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's chat template supports, by llama.cpp's analysis: whether it describes ``tools`` to the
    model, and whether it turns the model's ``thinking`` on and off."""

    tools: bool
    thinking: bool


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """Reports that a model is loaded, or its template analysed. ``cage`` maps each layer of the sandbox to
    ``yes``, or to the reason why it is missing. A model that generates no text has no ``template``.
    ``gpus`` are the bytes that the model takes on each GPU."""

    capabilities: Capabilities = Capabilities()
    cage: dict[str, str] = {}
    template: Template | None = None
    gpus: ByGpu = {}


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an engine. ``steps`` counts its steps. ``busy_ms`` is the time since the current step
    began, or 0 if no step runs. ``predicted_ms`` is the expected time of the current step, or 0 if it is not
    known. ``read`` maps each job to the processed share of its prompt, from 0 to 1."""

    steps: int = 0
    busy_ms: float = 0.0
    predicted_ms: float = 0.0
    read: dict[int, float] = {}


class KeptState(msgspec.Struct, frozen=True, kw_only=True):
    """A file with a state of ``size`` bytes. ``tokens`` holds 32-bit ids in native byte order. ``usable`` is
    false if the state was made for another model, build or context."""

    number: int
    scope: bytes
    session: bytes
    tokens: bytes
    size: int
    usable: bool


class LeavingState(msgspec.Struct, frozen=True, kw_only=True):
    """A state to save in a file. ``replaces`` lists the numbers of the files that are not needed once the new
    file exists."""

    scope: bytes
    session: bytes
    tokens: bytes
    replaces: list[int]


class Failure(msgspec.Struct, frozen=True):
    """An error. ``kind`` is the name of the error's class in :mod:`inferd.errors`."""

    kind: str
    message: str
    details: dict[str, Any] = {}


_NAMED = {
    kind.__name__: kind
    for kind in (
        errors.AttachmentUnsupported,
        errors.BackendInternal,
        errors.BootCancelled,
        errors.EmbedUnsupported,
        errors.InvalidRequest,
        errors.ModelError,
        errors.RerankUnsupported,
        errors.SchemaViolation,
        errors.ToolCallMalformed,
        errors.Unavailable,
        errors.Unsupported,
    )
}


def failure(error: BaseException) -> Failure:
    """Converts an exception to a message. The text of an unexpected exception is left out."""
    for kind in type(error).__mro__:
        if kind.__name__ in _NAMED:
            details = error.details if isinstance(error, InferdError) else {}
            return Failure(kind.__name__, str(error), dict(details))
    return Failure("BackendInternal", "internal error; the daemon's log says more")


def error(failed: Failure) -> InferdError:
    found = _NAMED.get(failed.kind, BackendInternal)(failed.message)
    if failed.details:
        found.details = failed.details
    return found


encode = msgspec.msgpack.encode
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def decode(kind: type[T], body: bytes | memoryview) -> T:
    """Decodes ``body`` as a ``kind``. Raises ``msgspec.DecodeError``, or its subclass ``ValidationError`` if
    the type is wrong."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    made: T = decoder.decode(body)
    return made


# A packed body: the length of a msgpack value, the value, and its raw buffers.


def pack(value: object, buffers: Sequence[bytes | memoryview] = ()) -> tuple[bytes, list[int]]:
    """Returns the body and the descriptors of a message. A large body is written to a memory file, whose
    descriptor is returned."""
    head = msgspec.msgpack.encode(value)
    parts = [_LENGTH.pack(len(head)), head, *buffers]
    size = sum(map(len, parts))
    if size <= INLINE_BYTES:
        return b"".join(parts), []
    fd = memory_file()
    try:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as mapping:
            at = 0
            for part in parts:
                mapping[at : at + len(part)] = part
                at += len(part)
    except BaseException:
        os.close(fd)
        raise
    return b"", [fd]


def unpack(kind: type[T], body: bytes, fds: Sequence[int]) -> tuple[T, memoryview]:
    """Returns the value of a packed body, and the buffers after it. Closes ``fds``. Raises the errors of
    :func:`decode`."""
    whole = memoryview(body)
    if fds:
        try:
            size = os.fstat(fds[0]).st_size
            whole = memoryview(mmap.mmap(fds[0], size, access=mmap.ACCESS_READ) if size else b"")
        finally:
            for fd in fds:
                os.close(fd)
    if len(whole) < _LENGTH.size:
        raise msgspec.DecodeError("a packed body has no length")
    (length,) = _LENGTH.unpack_from(whole)
    end = _LENGTH.size + length
    return decode(kind, whole[_LENGTH.size : end]), whole[end:]


def memory_file() -> int:
    """Returns the descriptor of an empty file in memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("inferd", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


# Requests.


def take_apart(request: GenerateRequest) -> tuple[tuple[GenerateRequest, list[int]], list[memoryview]]:
    """Separates a request from the data of its media. Returns the request without the data, the sizes of the
    data, and the data."""
    buffers: list[memoryview] = []
    sizes: list[int] = []

    def without_data(part: str | Media) -> str | Media:
        if isinstance(part, str):
            return part
        buffers.append(memoryview(part.data))
        sizes.append(len(part.data))
        return replace(part, data=memoryview(b""))

    messages = tuple(
        message
        if isinstance(message.content, str)
        else replace(message, content=tuple(without_data(part) for part in message.content))
        for message in request.messages
    )
    return (replace(request, messages=messages) if sizes else request, sizes), buffers


def pack_generate(request: GenerateRequest) -> tuple[bytes, list[int]]:
    """Packs a request, with the data of its media after it."""
    return pack(*take_apart(request))


def unpack_generate(body: bytes, fds: Sequence[int]) -> GenerateRequest:
    (request, sizes), rest = unpack(tuple[GenerateRequest, list[int]], body, fds)
    if not sizes:
        return request
    left = iter(sizes)
    at = 0

    def with_data(part: str | Media) -> str | Media:
        nonlocal at
        if isinstance(part, str):
            return part
        start, at = at, at + next(left)
        return replace(part, data=rest[start:at])

    def filled(message: Message) -> Message:
        if isinstance(message.content, str):
            return message
        return replace(message, content=tuple(with_data(part) for part in message.content))

    return replace(request, messages=tuple(filled(message) for message in request.messages))
