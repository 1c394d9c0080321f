"""Converts an error frame of an upstream inferd daemon to an error of this daemon, so that the client gets
the same code."""

from __future__ import annotations

from inferd.errors import (
    AttachmentTooLarge,
    AttachmentUnsupported,
    BackendInternal,
    DeadlineExceeded,
    EmbedUnsupported,
    InferdError,
    InvalidRequest,
    RequestFailed,
    RerankUnsupported,
    SchemaViolation,
    ToolCallMalformed,
    Unavailable,
    UpstreamFull,
)

_AS_THERE: dict[str, type[InferdError]] = {
    kind.code: kind
    for kind in (
        InvalidRequest,
        Unavailable,
        BackendInternal,
        DeadlineExceeded,
        EmbedUnsupported,
        RerankUnsupported,
        AttachmentUnsupported,
        ToolCallMalformed,
        SchemaViolation,
    )
}


def error_of(backend: str, failed: RequestFailed) -> InferdError:
    """Returns the error for an error frame from the daemon of ``backend``. An unknown code becomes
    BackendInternal. The code ``model_not_found`` becomes Unavailable, because the config entry named the
    model and the client did not."""
    error: InferdError
    if failed.wire_code == "queue_full":
        error = UpstreamFull(str(failed), failed.retry_after_secs)
    elif failed.wire_code == "frame_too_large":
        error = AttachmentTooLarge(str(failed), 0)
    elif failed.wire_code == "model_not_found":
        error = Unavailable(f"backend {backend!r} does not have the model of its entry: {failed}")
    else:
        error = _AS_THERE.get(failed.wire_code, BackendInternal)(str(failed))
    error.details = failed.details
    error.logged = f"backend {backend!r} answered {failed.wire_code}"
    return error
