"""Attachments of a request: their metadata and their bytes.

The content of an attachment is base64 in the field ``bytes``, or raw bytes after the request's line. With raw
bytes, the field ``size`` is the number of these bytes. The raw bytes of all attachments follow in order,
without separators. The rules for raw bytes are the same for every kind of attachment, so that the daemon
finds the next line even if it refuses the request. If a request is sent in length-prefixed frames, the
content of an attachment without ``bytes`` follows in a blob frame (:mod:`inferd.wire.framed`).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Union

import msgspec

from inferd import fastpath
from inferd.errors import AttachmentTooLarge, AttachmentUnsupported, DecodeError
from inferd.wire.bounds import MAX_ATTACHMENTS
from inferd.wire.sampling import U32, invalid

MAX_TOGETHER_BYTES = 128 * 1024 * 1024
DEFAULT_MAX_BYTES = 64 * 1024 * 1024

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
AUDIO_TYPES = ("audio/wav", "audio/mpeg", "audio/flac")

Size = Annotated[int, msgspec.Meta(ge=0)]


class _Attachment(msgspec.Struct, kw_only=True, tag_field="kind"):
    """The fields of every kind of attachment. ``data`` is the content, decoded from base64 or set by
    :func:`assign`. ``size`` is the number of raw bytes after the line."""

    id: str
    data: memoryview | None = msgspec.field(name="bytes", default=None)
    size: Size | None = None

    @property
    def content(self) -> memoryview:
        """The bytes of the content. If the content is sent as raw bytes, ``content`` is empty until
        :func:`assign` sets these bytes."""
        return memoryview(b"") if self.data is None else self.data


class Image(_Attachment, tag="image", kw_only=True):
    """An image. With a ``mime`` type, the content is an image file. Without a ``mime`` type, the content is
    ``width`` by ``height`` pixels, each three bytes: red, green and blue."""

    width: U32 | None = None
    height: U32 | None = None
    mime: str | None = None


class Audio(_Attachment, tag="audio", kw_only=True):
    """A recording. With a ``mime`` type, the content is an audio file. Without a ``mime`` type, the content
    is little-endian float32 samples of one channel."""

    sample_rate: U32 | None = None
    mime: str | None = None


class Text(_Attachment, tag="text", kw_only=True):
    """A text in UTF-8."""


class Video(_Attachment, tag="video", kw_only=True):
    """A video. Every request with a video is refused."""


class Unknown(msgspec.Struct, kw_only=True, tag_field="kind", tag="unknown"):
    """An attachment of an unknown kind. Only ``id`` and ``size`` are read; ``size`` tells where the next line
    begins."""

    id: str = ""
    size: Size | None = None


Attachment = Union[Image, Audio, Text, Video, Unknown]  # noqa: UP007 - evaluated where `|` may not be
KINDS = frozenset({"image", "audio", "text", "video"})
KEYS = frozenset({"kind", "id", "bytes", "size", "width", "height", "sample_rate", "mime"})


def read(attachments: Sequence[Attachment], request_id: str, *, content_follows: bool = False) -> None:
    """Checks that each attachment of a parsed request has the fields that its kind needs.

    Raises DecodeError if a field is missing or not allowed.

    ``content_follows`` is true for a request in length-prefixed frames. In such a request, the content of an
    attachment without ``bytes`` follows in a blob frame.
    """
    for i, attachment in enumerate(attachments):
        where = f"$.attachments[{i}]"
        if content_follows and attachment.size is not None:
            raise DecodeError(f"Expected no `size`, the content follows in a blob - at `{where}`", request_id)
        if isinstance(attachment, Unknown):
            continue
        if attachment.data is not None and attachment.size is not None:
            raise DecodeError(f"Expected one of `bytes` and `size` - at `{where}`", request_id)
        for key in _missing(attachment, content_follows):
            raise DecodeError(f"Object missing required field `{key}` - at `{where}`", request_id)


def _missing(attachment: Image | Audio | Text | Video, content_follows: bool) -> list[str]:
    needed: dict[str, object] = {}
    if isinstance(attachment, Image) and attachment.mime is None:
        needed |= {"width": attachment.width, "height": attachment.height}
    if isinstance(attachment, Audio) and attachment.mime is None:
        needed["sample_rate"] = attachment.sample_rate
    if not content_follows and not isinstance(attachment, Video):
        needed["bytes"] = attachment.size if attachment.data is None else True
    return [key for key, value in needed.items() if value is None]


def is_canonical_base64(text: str, data: memoryview) -> bool:
    """Whether ``text``, which decodes to ``data``, is the canonical base64 encoding of ``data``."""
    return base64.b64encode(data[-(len(data) % 3 or 3) :]).decode() == text[-4:]


# Framing.


def raw_size(attachments: Sequence[Attachment], max_bytes: int) -> int:
    """Returns the number of raw bytes that follow the request's line. Raises AttachmentTooLarge if an
    attachment has more than ``max_bytes``, or all together have more than MAX_TOGETHER_BYTES."""
    total = 0
    for i, attachment in enumerate(attachments):
        total = add_size(i, attachment.size or 0, total, max_bytes)
    return total


def add_size(i: int, size: int, total: int, max_bytes: int) -> int:
    """Returns ``total`` plus the ``size`` of attachment number ``i``. Raises AttachmentTooLarge if ``size``
    exceeds ``max_bytes``, or the sum exceeds MAX_TOGETHER_BYTES."""
    if size > max_bytes:
        raise AttachmentTooLarge(f"attachments[{i}] exceeds {max_bytes} byte cap", max_bytes)
    if total + size > MAX_TOGETHER_BYTES:
        raise AttachmentTooLarge(f"attachments exceed {MAX_TOGETHER_BYTES} byte cap", MAX_TOGETHER_BYTES)
    return total + size


def assign(attachments: Sequence[Attachment], raw: memoryview) -> None:
    """For each attachment that has a ``size``, sets the content to a slice of ``raw``, without copying.
    ``raw`` holds the raw bytes of all attachments."""
    start = 0
    for attachment in attachments:
        if attachment.size is not None:
            end = start + attachment.size
            if not isinstance(attachment, Unknown):
                attachment.data = raw[start:end]
            start = end


# Validation.


def check_list(attachments: Sequence[Attachment]) -> dict[str, Attachment]:
    """Returns the attachments by their ids. Raises InvalidRequest if an id is empty or used twice, a kind is
    unknown, or the request has more than MAX_ATTACHMENTS."""
    by_id: dict[str, Attachment] = {}
    check_count(attachments)
    for attachment in attachments:
        if isinstance(attachment, Unknown):
            raise invalid("attachments contain an unknown kind")
        if not attachment.id:
            raise invalid("attachments must have non-empty id")
        if attachment.id in by_id:
            raise invalid(f"duplicate attachment id: {attachment.id}")
        by_id[attachment.id] = attachment
    return by_id


def check_count(attachments: Sequence[Attachment]) -> None:
    """Raises InvalidRequest if a request has more than MAX_ATTACHMENTS."""
    if len(attachments) > MAX_ATTACHMENTS:
        raise invalid(f"attachments must hold at most {MAX_ATTACHMENTS}")


def refuse_video(attachments: Sequence[Attachment]) -> None:
    """Raises AttachmentUnsupported if an attachment is a video."""
    if any(isinstance(attachment, Video) for attachment in attachments):
        raise AttachmentUnsupported("video attachments are not supported; send single frames as images")


def check_contents(attachments: Sequence[Attachment]) -> None:
    """Checks the content of all attachments. Raises InvalidRequest if a content does not have its declared
    size or type, and AttachmentUnsupported for a video."""
    total = 0
    refuse_video(attachments)
    for i, attachment in enumerate(attachments):
        if isinstance(attachment, Image):
            _check_image(attachment, f"attachments[{i}]")
        elif isinstance(attachment, Audio):
            _check_audio(attachment, f"attachments[{i}]")
        elif isinstance(attachment, Text) and not fastpath.is_utf8(attachment.content):
            raise invalid(f"attachments[{i}] is not valid UTF-8")
        if not isinstance(attachment, Unknown):
            total += len(attachment.content)
    if total > MAX_TOGETHER_BYTES:
        raise invalid(f"attachments must hold at most {MAX_TOGETHER_BYTES} bytes together")


def _check_image(image: Image, where: str) -> None:
    if image.mime is not None:
        _check_file(image.mime, IMAGE_TYPES, image.content, where)
        return
    width, height, size = image.width or 0, image.height or 0, len(image.content)
    if not width or not height:
        raise invalid(f"{where}.width and {where}.height must be at least 1")
    if size != width * height * 3:
        raise invalid(f"{where} must hold {width}*{height}*3 = {width * height * 3} bytes, not {size}")


def _check_audio(audio: Audio, where: str) -> None:
    if audio.mime is not None:
        _check_file(audio.mime, AUDIO_TYPES, audio.content, where)
        return
    if not audio.sample_rate:
        raise invalid(f"{where}.sample_rate must be at least 1")
    if not audio.content or len(audio.content) % 4:
        raise invalid(f"{where} must hold whole float32 samples, 4 bytes each, at least one")


def _check_file(mime: str, known: tuple[str, ...], content: memoryview, where: str) -> None:
    if mime not in known:
        raise invalid(f"{where}.mime must be one of {', '.join(known)}")
    if not content:
        raise invalid(f"{where} must not be empty")


def drop_texts(attachments: Sequence[Attachment]) -> None:
    """Frees the bytes of text attachments. Call this function after :func:`text_of` has decoded the
    attachments."""
    for attachment in attachments:
        if isinstance(attachment, Text):
            attachment.data = None


def text_of(attachment: Text) -> str:
    """Returns the text of a valid text attachment."""
    return fastpath.decode_utf8(attachment.content)
