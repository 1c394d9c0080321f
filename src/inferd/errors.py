"""The one exception tree.

Class attributes classify an error, so that no code has to match its message:

* ``code``       the wire code of the error frame that a client sees (only ``serve.session`` writes it);
* ``exit_code``  the exit status of a command that ends with the error (only ``cli`` uses it);
* ``fault``      the party at fault: ``"client"``, ``"backend"``, ``"daemon"`` or ``"operator"``;
* ``retryable``  whether the same request may succeed later unchanged;
* ``closes``     whether the daemon closes the connection after the error frame.

The message is one sentence that names the problem and, where known, the remedy.

(This file has over 400 lines, because this module is one list of all errors, with the attributes that
classify each error.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

Fault = Literal["client", "backend", "daemon", "operator"]


class InferdError(Exception):
    """Base of every error that inferd raises on purpose."""

    code: ClassVar[str] = "internal"
    exit_code: int = 1
    fault: Fault = "daemon"
    retryable: bool = False
    logged: str | None = None
    """The text to log instead of the message, if the message may quote a client or a server."""
    closes: ClassVar[bool] = False

    details: Mapping[str, Any] = MappingProxyType({})
    """Machine-readable fields of the error frame besides code and message: names and plain values."""


# Errors of a client.


class InvalidRequest(InferdError):
    """A request with the right form but an invalid value, such as an empty list or a number out of range."""

    code = "invalid_request"
    exit_code = 5
    fault = "client"


class DecodeError(InvalidRequest):
    """JSON that is not a request: a field has the wrong type, is missing, or is given twice.

    ``request_id`` is the request's ``id``. ``request_id`` is ``""`` unless the JSON was an object with a
    string ``id``.
    """

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__(f"decode: {message}")
        self.request_id = request_id


class NotJson(DecodeError):
    """Bytes that are not JSON in UTF-8. The daemon cannot tell where the next request begins."""

    closes = True


class MalformedFrame(DecodeError):
    """Bytes that are not a frame, where the protocol requires a frame."""

    closes = True

    def __init__(self, message: str, request_id: str = "") -> None:
        InferdError.__init__(self, f"malformed frame: {message}")
        self.request_id = request_id


class WireVersionUnsupported(DecodeError):
    """A framed request whose ``wire_version`` is missing or unsupported."""

    code = "wire_version_unsupported"
    closes = True

    def __init__(self, given: object, supported: int, request_id: str = "") -> None:
        shown = f" {given}" if type(given) is int else ""
        found = "the request has no wire_version" if given is None else f"unsupported wire_version{shown}"
        InferdError.__init__(self, f"{found}: this daemon speaks wire_version {supported}")
        self.request_id = request_id


class PromptTooLong(InvalidRequest):
    """A prompt of at least ``tokens`` tokens for a context of ``limit`` tokens. ``trained`` is the training
    context of the model; the message advises a larger context only if the model takes one."""

    def __init__(self, message: str, tokens: int, limit: int, trained: int | None = None) -> None:
        if trained is not None:
            message += ": shorten it"
            message += " or serve with a larger --n-ctx" if limit < trained else "; the model takes no more"
        super().__init__(message)
        self.details = {"reason": "prompt_too_long", "tokens": tokens, "limit": limit}


class FrameTooLarge(InferdError):
    """A line or a frame longer than ``cap`` bytes."""

    code = "frame_too_large"
    exit_code = 5
    fault = "client"
    closes = True

    def __init__(self, cap: int) -> None:
        super().__init__(f"frame exceeds {cap} byte cap")
        self.cap = cap


class AttachmentTooLarge(FrameTooLarge):
    """The announced size of an attachment, or of a request's attachments together, exceeds ``cap`` bytes. The
    attachment that exceeds the limit is not read."""

    def __init__(self, message: str, cap: int) -> None:
        InferdError.__init__(self, message)
        self.cap = cap


class ModelNotFound(InferdError):
    """A request names a model that is not available. ``near`` are similar names.

    ``missing`` is true if the model is known but its file is not in the store. A request never starts a
    download.
    """

    code = "model_not_found"
    exit_code = 5
    fault = "client"

    def __init__(
        self, name: str, near: Sequence[str] = (), *, missing: bool = False, loaded: bool = True
    ) -> None:
        if not loaded:
            what = f"the model {name!r} is not loaded; `inferd ps` lists the loaded ones"
        elif missing:
            what = f"the file of model {name!r} is not in the store; run `inferd pull {name}`"
        elif near:
            what = f"no model {name!r}; did you mean {' or '.join(map(repr, near))}?"
        else:
            what = f"no model {name!r}; `inferd list` shows the known models"
        super().__init__(what)


# Temporary limits of the daemon.


class QueueFull(InferdError):
    """The admission queue is full.

    ``retry_after_secs`` estimates after how many seconds a request can be admitted. ``None`` means unknown.
    """

    code = "queue_full"
    exit_code = 4
    retryable = True

    def __init__(self, retry_after_secs: float | None = None) -> None:
        super().__init__("queue full")
        self.retry_after_secs = retry_after_secs


class InputMemoryFull(InferdError):
    """No memory is left for a long line or for attachments. The bytes of the request stay unread, so the
    connection is closed after the error frame."""

    code = "queue_full"
    exit_code = 4
    retryable = True

    def __init__(self) -> None:
        super().__init__("no memory is left for a request of this size; send it again later")


class AdmissionClosed(InferdError):
    """The daemon is about to stop, and accepts no new requests."""

    code = "backend_unavailable"
    exit_code = 4
    retryable = True
    closes = True

    def __init__(self) -> None:
        super().__init__("admission closed")


class AnswerUnread(InferdError):
    """A client did not read an answer while other requests waited for a permit to run."""

    code = "queue_full"
    exit_code = 4
    fault = "client"
    retryable = True

    def __init__(self) -> None:
        super().__init__("the answer was not read while other requests waited; read it faster, or ask again")


class DeadlineExceeded(InferdError):
    """The request's ``deadline_ms`` passed before it was answered."""

    code = "deadline_exceeded"
    exit_code = 4
    fault = "client"
    retryable = True


# Errors of a backend. If ``counts`` is true, the circuit breaker counts the error as a failure of the
# backend. If ``elsewhere`` is true, another backend of the same model may be able to serve the request.


class BackendError(InferdError):
    """Base of the errors that a backend raises before or during its answer."""

    code = "backend_unavailable"
    exit_code = 4
    fault = "backend"
    retryable = True
    counts: ClassVar[bool] = True
    elsewhere: ClassVar[bool] = True


class NoBackend(BackendError):
    """No configured backend can serve the request now. For each backend, one of these holds: it is not ready,
    it lacks a capability that the request needs, or its circuit breaker blocks it."""

    counts = False
    elsewhere = False

    def __init__(self) -> None:
        super().__init__("no backend available")


class ModelBroken(BackendError):
    """The model file has changed or cannot be loaded. Only a reload helps."""

    retryable = False
    counts = False
    elsewhere = False

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no backend available: the model of {name!r} cannot be loaded; `inferd doctor` says why"
        )


class NotReady(BackendError):
    """The backend has not finished loading."""

    def __init__(self) -> None:
        super().__init__("backend not ready")


class Unavailable(BackendError):
    """The backend cannot serve now. The message gives the reason."""


class UpstreamFull(BackendError):
    """The queue of an upstream daemon is full. ``retry_after_secs`` has the same meaning as in
    :class:`QueueFull`."""

    code = "queue_full"
    counts = False

    def __init__(self, message: str, retry_after_secs: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_secs = retry_after_secs


class ModelTooLarge(BackendError):
    """A model would not fit into the memory budget, in RAM or on a GPU, even if every model that may be
    unloaded were unloaded. The message has the sizes."""

    retryable = False
    counts = False
    elsewhere = False


class EngineEnded(Unavailable):
    """The engine process of the request has died or hung. The daemon starts a new engine process.

    The circuit breaker does not count the lost requests, because the engine's supervisor already limits the
    restarts.
    """

    counts = False


class BackendInternal(BackendError):
    """The backend failed for a reason of its own, not because of the request."""

    code = "internal"
    retryable = False


class Unsupported(BackendError):
    """No available backend has the capability that the request needs. The circuit breaker does not count this
    error as a failure of the backend."""

    code = "internal"
    retryable = False
    counts = False
    elsewhere = False


class EmbedUnsupported(Unsupported):
    """No backend can embed."""

    code = "embed_unsupported"


class RerankUnsupported(Unsupported):
    """No backend can rank documents."""

    code = "rerank_unsupported"


class AttachmentUnsupported(Unsupported):
    """The model cannot take this kind of attachment."""

    code = "attachment_unsupported"


class ToolCallMalformed(BackendError):
    """The model wrote a tool call that cannot be parsed. The message does not quote the call."""

    code = "tool_call_malformed"
    counts = False
    elsewhere = False


class SchemaViolation(BackendError):
    """The finished answer violates a part of the schema that the grammar cannot enforce. The message says
    which part."""

    code = "schema_violation"
    counts = False
    elsewhere = False


# Errors that the operator has to fix.


class OperatorError(InferdError):
    """Base of the errors that end a command or a boot with one line on stderr."""

    fault = "operator"


class ConfigError(OperatorError):
    """A flag, an environment variable or the config file has an invalid value."""


class UsageError(ConfigError):
    """An invalid command line."""

    exit_code = 2


class LockHeld(OperatorError):
    """Another process holds the lock that only one daemon can hold, or a lock of the model store."""


class AddressError(OperatorError):
    """A socket path or TCP address cannot be bound, or may not be served without an API key."""


class ModelError(OperatorError):
    """A model file cannot be loaded."""


class StoreError(OperatorError):
    """The model store cannot be read or written, lacks the model, or is in use by another process."""


class FetchError(StoreError):
    """A model could not be fetched from any of its sources."""

    retryable = True


class HashMismatch(StoreError):
    """A model file does not have the expected hash. If the file is in the store, the store moves it to
    quarantine."""


class ServiceError(OperatorError):
    """The service manager of the system is missing or has failed."""


class BootCancelled(OperatorError):
    """A signal ended the boot."""

    exit_code = 0


# Errors that a client of the daemon raises.


class DaemonUnreachable(OperatorError):
    """No daemon answers on the socket."""

    exit_code = 3
    retryable = True


class NotPermitted(DaemonUnreachable):
    """This user may not open the daemon's socket."""

    retryable = False


class SurfaceNotServed(DaemonUnreachable):
    """A daemon runs, but does not serve the surface that the client needs, such as ``embed``."""

    retryable = False


class DaemonUntrusted(OperatorError):
    """Another user serves the daemon's socket, perhaps in order to read prompts."""

    exit_code = 3


class ConnectionLost(OperatorError):
    """The daemon closed the connection before the request's terminal frame."""

    exit_code = 3
    retryable = True


class AnswerCancelled(InferdError):
    """The daemon ended an answer early. ``done`` is the last event of the answer, with the partial result."""

    exit_code = 4
    retryable = True

    def __init__(self, done: object) -> None:
        super().__init__(
            "the answer was ended before it was whole: its deadline passed, or the daemon stopped; ask again"
        )
        self.done = done


class KeyRefused(ConnectionLost):
    """The daemon closed a TCP connection without a reply, as it does for a wrong API key."""

    retryable = False


class BootFailed(OperatorError):
    """The daemon could not start. The message comes from the daemon."""


class ProtocolError(InferdError):
    """The peer violated the wire protocol."""

    exit_code = 3


_MEANING: dict[str, type[InferdError]] = {
    kind.code: kind
    for kind in (
        InvalidRequest,
        WireVersionUnsupported,
        FrameTooLarge,
        QueueFull,
        Unavailable,
        BackendInternal,
        DeadlineExceeded,
        EmbedUnsupported,
        RerankUnsupported,
        AttachmentUnsupported,
        ToolCallMalformed,
        ModelNotFound,
        SchemaViolation,
    )
}


class RequestFailed(InferdError):
    """A client received an error frame. ``wire_code``, ``details`` and the message come from the frame.

    ``exit_code``, ``fault`` and ``retryable`` come from the error class whose ``code`` is ``wire_code``. An
    unknown code counts as ``internal``. ``retry_after_secs`` estimates after how many seconds a retry may
    succeed. ``None`` means unknown.
    """

    def __init__(self, wire_code: str, message: str, retry_after_secs: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_secs = retry_after_secs
        meaning = _MEANING.get(wire_code, BackendInternal)
        self.wire_code = wire_code
        self.exit_code = meaning.exit_code
        self.fault = meaning.fault
        self.retryable = meaning.retryable
