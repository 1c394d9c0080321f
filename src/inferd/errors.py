"""The one exception tree.

Each class carries, as data, what the layers above need to know about it, so that nothing ever
recognises an error by its text:

* ``code``       the wire code of the error frame that a client sees (``serve.session`` alone writes it);
* ``exit_code``  the exit status of a command that ends with it (``cli`` alone uses it);
* ``fault``      who has to change something: ``"client"``, ``"backend"``, ``"daemon"`` or ``"operator"``;
* ``retryable``  whether the same request may succeed later without a change;
* ``closes``     whether the daemon closes the connection after the error frame.

The message of an error is one sentence that names what was wrong and, where it can be known, what to do.
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
    """What the log has instead of the message, where that may hold the words of others."""
    closes: ClassVar[bool] = False

    details: Mapping[str, Any] = MappingProxyType({})
    """What the error frame says beside code and message, for programs: names and plain values."""


# What a client did.


class InvalidRequest(InferdError):
    """A well-formed request that cannot be served as it is: an empty list, a number out of range."""

    code = "invalid_request"
    exit_code = 5
    fault = "client"


class DecodeError(InvalidRequest):
    """JSON that is not a request: a field has another type, is missing, or is given twice.

    ``request_id`` is the request's ``id`` when it was an object with a string there, else ``""``.
    """

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__(f"decode: {message}")
        self.request_id = request_id


class NotJson(DecodeError):
    """Bytes that are not JSON in UTF-8, so that what follows them cannot be trusted either."""

    closes = True


class MalformedFrame(DecodeError):
    """Bytes that are not a frame where one must be."""

    closes = True

    def __init__(self, message: str, request_id: str = "") -> None:
        InferdError.__init__(self, f"malformed frame: {message}")
        self.request_id = request_id


class WireVersionUnsupported(DecodeError):
    """A framed request of another version of the wire, or of none."""

    code = "wire_version_unsupported"
    closes = True

    def __init__(self, given: object, supported: int, request_id: str = "") -> None:
        shown = f" {given}" if type(given) is int else ""
        found = "the request has no wire_version" if given is None else f"unsupported wire_version{shown}"
        InferdError.__init__(self, f"{found}: this daemon speaks wire_version {supported}")
        self.request_id = request_id


class PromptTooLong(InvalidRequest):
    """A prompt of ``tokens`` tokens, at least, for a context of ``limit``."""

    def __init__(self, message: str, tokens: int, limit: int) -> None:
        super().__init__(message)
        self.details = {"reason": "prompt_too_long", "tokens": tokens, "limit": limit}


class FrameTooLarge(InferdError):
    """A line or a frame longer than the cap of ``cap`` bytes."""

    code = "frame_too_large"
    exit_code = 5
    fault = "client"
    closes = True

    def __init__(self, cap: int) -> None:
        super().__init__(f"frame exceeds {cap} byte cap")
        self.cap = cap


class AttachmentTooLarge(FrameTooLarge):
    """Attachments announced beyond their cap of ``cap`` bytes; none of their bytes was read."""

    def __init__(self, message: str, cap: int) -> None:
        InferdError.__init__(self, message)
        self.cap = cap


class ModelNotFound(InferdError):
    """A request names a model that cannot be had; ``near`` are names that could have been meant.

    ``missing``: the model is known, but its file is not in the store. A request never starts a download.
    """

    code = "model_not_found"
    exit_code = 5
    fault = "client"

    def __init__(
        self, name: str, near: Sequence[str] = (), *, missing: bool = False, loaded: bool = True
    ) -> None:
        if not loaded:
            what = f"the model {name!r} is not loaded; `inferd ps` names those that are"
        elif missing:
            what = f"the file of model {name!r} is not in the store; run `inferd pull {name}`"
        elif near:
            what = f"no model {name!r}; did you mean {' or '.join(map(repr, near))}?"
        else:
            what = f"no model {name!r}; `inferd list` names those that there are"
        super().__init__(what)


# What the daemon cannot do just now.


class QueueFull(InferdError):
    """Every place of the admission queue is taken.

    ``retry_after_secs`` is about when the next place becomes free; ``None`` is unknown.
    """

    code = "queue_full"
    exit_code = 4
    retryable = True

    def __init__(self, retry_after_secs: float | None = None) -> None:
        super().__init__("queue full")
        self.retry_after_secs = retry_after_secs


class InputMemoryFull(InferdError):
    """No memory is left for a long line or for attachments; their bytes are unread, so the connection is
    closed after the error frame."""

    code = "queue_full"
    exit_code = 4
    retryable = True

    def __init__(self) -> None:
        super().__init__("no memory is left for a request of this size; send it again later")


class AdmissionClosed(InferdError):
    """The daemon is draining."""

    code = "backend_unavailable"
    exit_code = 4
    retryable = True
    closes = True

    def __init__(self) -> None:
        super().__init__("admission closed")


class AnswerUnread(InferdError):
    """A client did not read its answer while others waited for the place of its request."""

    code = "queue_full"
    exit_code = 4
    fault = "client"
    retryable = True

    def __init__(self) -> None:
        super().__init__("the answer was not read while other requests waited; read it faster, or ask again")


class DeadlineExceeded(InferdError):
    """The request's ``deadline_ms`` passed while it waited for a place."""

    code = "deadline_exceeded"
    exit_code = 4
    fault = "client"
    retryable = True


# What a backend did. ``counts`` says whether the circuit breaker takes it as a failure of the backend,
# ``elsewhere`` whether another backend of the same model may well serve the request.


class BackendError(InferdError):
    """Base of the errors that a backend raises before or in the stream."""

    code = "backend_unavailable"
    exit_code = 4
    fault = "backend"
    retryable = True
    counts: ClassVar[bool] = True
    elsewhere: ClassVar[bool] = True


class NoBackend(BackendError):
    """No configured backend is ready, capable and not shut off by its breaker."""

    counts = False
    elsewhere = False

    def __init__(self) -> None:
        super().__init__("no backend available")


class ModelBroken(BackendError):
    """The file of the model was changed or cannot be loaded: only a reload helps."""

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
    """The backend cannot serve now; the text says why."""


class UpstreamFull(BackendError):
    """The queue of the daemon behind a backend is full; ``retry_after_secs`` as of :class:`QueueFull`."""

    code = "queue_full"
    counts = False

    def __init__(self, message: str, retry_after_secs: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_secs = retry_after_secs


class ModelTooLarge(BackendError):
    """A model needs more memory than the budget leaves when all models gave way that may; sizes in bytes."""

    retryable = False
    counts = False
    elsewhere = False

    def __init__(self, name: str, needed: int, budget: int, used: int) -> None:
        super().__init__(
            f"the model {name!r} needs about {needed >> 20} MiB and the budget for all models is"
            f" {budget >> 20} MiB, of which {used >> 20} MiB are in use; serve fewer requests at once, or"
            " raise limits.memory_budget_bytes"
        )


class EngineEnded(Unavailable):
    """The engine process of the request has died or hung; a new one is started.

    Its supervisor has its own limit for that, so the breaker does not count each request that was lost.
    """

    counts = False


class BackendInternal(BackendError):
    """The backend failed in a way that is its own fault."""

    code = "internal"
    retryable = False


class Unsupported(BackendError):
    """No backend that could serve has the capability that the request needs; not the backend's failure."""

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
    """The model wrote a tool call that cannot be read; its text is not in the message."""

    code = "tool_call_malformed"
    counts = False
    elsewhere = False


class SchemaViolation(BackendError):
    """The finished answer breaks a part of its schema that could not be enforced; the message says where."""

    code = "schema_violation"
    counts = False
    elsewhere = False


# What the operator has to mend.


class OperatorError(InferdError):
    """Base of the errors that end a command or a boot with one line on stderr."""

    fault = "operator"


class ConfigError(OperatorError):
    """A flag, an environment variable or the config file holds something unusable."""


class UsageError(ConfigError):
    """A command line that cannot be followed."""

    exit_code = 2


class LockHeld(OperatorError):
    """Another daemon already holds the single-instance lock."""


class AddressError(OperatorError):
    """A socket path or TCP address cannot be bound."""


class ModelError(OperatorError):
    """A model file cannot be loaded."""


class StoreError(OperatorError):
    """The model store cannot be read or written."""


class FetchError(StoreError):
    """A model could not be brought from any of its sources."""

    retryable = True


class HashMismatch(StoreError):
    """A model file is not the one that was asked for; if it lay in the store, it was moved to quarantine."""


class ServiceError(OperatorError):
    """The system's service manager is not there, or does not do what it is asked."""


class BootCancelled(OperatorError):
    """A signal ended the boot."""

    exit_code = 0


# What a client of the daemon meets.


class DaemonUnreachable(OperatorError):
    """Nothing answers on the daemon's socket."""

    exit_code = 3
    retryable = True


class NotPermitted(DaemonUnreachable):
    """The daemon's socket may not be opened by this user."""

    retryable = False


class SurfaceNotServed(DaemonUnreachable):
    """The daemon that runs does not serve this surface."""

    retryable = False


class DaemonUntrusted(OperatorError):
    """The daemon's socket is served by a user who could have put it there to read prompts."""

    exit_code = 3


class ConnectionLost(OperatorError):
    """The daemon closed the connection before the request's terminal frame."""

    exit_code = 3
    retryable = True


class AnswerCancelled(InferdError):
    """The daemon ended an answer before it was whole; ``done`` is its last event, with what there is."""

    exit_code = 4
    retryable = True

    def __init__(self, done: object) -> None:
        super().__init__(
            "the answer was ended before it was whole: its deadline passed, or the daemon stopped; ask again"
        )
        self.done = done


class KeyRefused(ConnectionLost):
    """The daemon closed a TCP connection without a word, as it does for a wrong API key."""

    retryable = False


class BootFailed(OperatorError):
    """The daemon that was waited for could not start; the text is the daemon's own."""


class ProtocolError(InferdError):
    """The peer sent something that is not the wire protocol."""

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
    """An error frame, as a client sees it: ``wire_code``, the daemon's message, and its ``details``.

    Exit code, fault and whether a retry may help are those of the class that the code belongs to; a code
    that this version does not know means ``internal``. ``retry_after_secs`` is when a retry may succeed,
    where the daemon knows.
    """

    def __init__(self, wire_code: str, message: str, retry_after_secs: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_secs = retry_after_secs
        meaning = _MEANING.get(wire_code, BackendInternal)
        self.wire_code = wire_code
        self.exit_code = meaning.exit_code
        self.fault = meaning.fault
        self.retryable = meaning.retryable
