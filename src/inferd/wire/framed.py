"""The framed wire: the JSON of the v2 protocol in length-prefixed frames instead of lines. The first bytes of
a connection show whether the connection uses frames or lines.

A frame consists of the length of its payload (LEB128, at most 64 MiB), one byte for its kind (``JSON`` or
``BLOB``), and the payload. The length and the kind are the head of the frame. A request is a JSON frame with
``"wire_version": 1``. The contents of attachments without a ``bytes`` field follow the request, in the order
of ``attachments``. Each content is sent as two frames: a JSON frame, which describes the content, and a blob
frame. :class:`inferd.fastpath.LineSplitter` reads the heads of frames. Answers are encoded as lines, and
:func:`inferd.fastpath.frame_lines` converts these lines to frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from inferd.errors import MalformedFrame, WireVersionUnsupported
from inferd.wire import attachments, frames, v2, v2_rules
from inferd.wire.attachments import Attachment
from inferd.wire.bounds import BLOB as BLOB
from inferd.wire.bounds import JSON as JSON
from inferd.wire.bounds import WIRE_VERSION
from inferd.wire.sampling import invalid

name = "framed"


Head = tuple[int, int]
"""A frame's kind and the size of its payload."""

MAX_DESCRIPTOR_BYTES = 64 * 1024
"""The size limit of the descriptor of an attachment."""

LONGEST_OPENING = 5
"""With this number of first bytes, :func:`is_framed` never returns ``None``."""

_BOM = b"\xef\xbb\xbf"


def is_framed(first: bytes) -> bool | None:
    """Whether a connection uses frames, judged by its ``first`` bytes. Returns ``None`` if more bytes are
    needed.

    In the head of a frame, the first byte is at least 0x80, or the second byte is the kind. A line of JSON
    meets neither condition, unless the line begins with a byte order mark. The three bytes of a byte order
    mark may also begin the head of a frame of a megabyte or more. A byte order mark counts as part of a head
    if the fourth byte is less than 0x80 and the fifth byte is the kind.

    If the first byte is a newline (0x0A), the client sends lines, and the first line is empty. A second byte
    is not needed, and may never come, because the client may already wait for the answer. In the head of a
    frame, 0x0A would be a length of 10 bytes, which is too short for any request.
    """
    if first[:1] == b"\n":
        return False
    if _BOM.startswith(first[:3]):
        if len(first) < LONGEST_OPENING:
            return None
        return first[3] < 0x80 and first[4] in (JSON, BLOB)
    if first[0] >= 0x80:
        return True
    return None if len(first) < 2 else first[1] in (JSON, BLOB)


def could_be_json(first: bytes) -> bool:
    """Whether ``first``, which is not the head of a frame, could begin a line of JSON."""
    return first.removeprefix(_BOM)[:1] in (b"{", b" ", b"\t", b"\r", b"\n", b"")


CODES = frozenset(
    {
        "queue_full",
        "backend_unavailable",
        "invalid_request",
        "frame_too_large",
        "internal",
        "attachment_unsupported",
        "tool_call_malformed",
        "wire_version_unsupported",
    }
)
"""The error codes that clients of the framed wire know. These clients cannot decode an ``error`` frame with
any other code."""

_NEAREST = {"deadline_exceeded": "backend_unavailable", "model_not_found": "invalid_request"}


def encode_error(
    request_id: str,
    code: str,
    message: str,
    retry_after_secs: float | None = None,
    details: Mapping[str, Any] | None = None,
) -> bytes:
    """Encodes the ``error`` frame. If ``code`` is not in ``CODES``, sends the code of ``CODES`` that is
    closest in meaning, or ``internal`` if none is close. The original code is then in the field
    ``reason``."""
    if code not in CODES:
        details = {"reason": code, **(details or {})}
        code = _NEAREST.get(code, "internal")
    return frames.encode_error(request_id, code, message, retry_after_secs, details)


class _Version(msgspec.Struct):
    id: str = ""
    wire_version: Any = None


class _Descriptor(msgspec.Struct):
    """The JSON frame that is sent before a blob frame. ``len`` is the size of the blob in bytes."""

    type: Literal["attachment_blob"]
    attachment_id: str
    len: Annotated[int, msgspec.Meta(ge=0)]


_version_decoder = msgspec.json.Decoder(_Version)
_descriptor_decoder = msgspec.json.Decoder(_Descriptor)


def parse(payload: bytes) -> v2.Request:
    """Parses the request in a JSON frame. Raises WireVersionUnsupported if ``wire_version`` is not
    WIRE_VERSION, and DecodeError if the JSON is not a request."""
    version = frames.decode(_version_decoder, payload)
    if type(version.wire_version) is not int or version.wire_version != WIRE_VERSION:
        raise WireVersionUnsupported(version.wire_version, WIRE_VERSION, version.id)
    return v2.parse(payload, content_follows=True)


def content_may_follow(payload: bytes) -> bool:
    """Whether blob frames could follow a JSON frame that is not a valid request. May be wrongly true, but is
    never wrongly false."""
    return b'"attachments"' in payload or frames.has_escaped_key_letter(payload)


def validate(request: v2.Request) -> None:
    """Checks the rules of the v2 protocol, and the further rules of the framed wire. Raises
    AttachmentUnsupported for a video, and InvalidRequest if any other rule is violated."""
    if request.tool_choice is not None:
        if not request.tools:
            raise invalid("tool_choice requires a non-empty tools array")
        if request.response_format is not None:
            raise invalid("tool_choice and response_format exclude each other")
    v2_rules.validate(request)


# Attachments.


def expected(request: v2.Request) -> list[tuple[int, Attachment]]:
    """Returns the attachments whose contents follow the request in blob frames, each with its index in
    ``attachments``. Leaves out attachments with ``bytes``.

    Raises InvalidRequest for too many attachments, and AttachmentUnsupported for a video, before a blob frame
    is read.
    """
    listed = request.attachments or ()
    attachments.check_count(listed)
    attachments.refuse_video(listed)
    return [
        (i, each)
        for i, each in enumerate(listed)
        if isinstance(each, attachments.Unknown) or each.data is None
    ]


def read_descriptor(payload: bytes | memoryview, attachment: Attachment, request_id: str) -> int:
    """Returns the size in bytes of the next blob, from its descriptor in ``payload``. Raises MalformedFrame
    if ``payload`` is not the descriptor of ``attachment``."""
    try:
        descriptor = _descriptor_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedFrame("expected an attachment_blob descriptor", request_id) from None
    if descriptor.attachment_id != attachment.id:
        raise MalformedFrame("the descriptor names another attachment than the next one", request_id)
    return descriptor.len


def assign(attachment: Attachment, blob: memoryview) -> None:
    """Sets the content of an attachment to ``blob``."""
    if not isinstance(attachment, attachments.Unknown):
        attachment.data = blob
