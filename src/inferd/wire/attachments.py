"""Attachments of a request: their metadata and their bytes.

An attachment carries its bytes as base64 in ``bytes``, or announces in ``size`` the number of raw bytes after
the line. The raw bytes of all attachments follow in order, without separators. This framing is the same for
every kind, so that the next line is found even after a refused request. On the framed wire the content of an
attachment without ``bytes`` follows in a blob (:mod:`inferd.wire.framed`).
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
    """``data`` is the content, decoded from base64 or set by :func:`assign`."""

    id: str
    data: memoryview | None = msgspec.field(name="bytes", default=None)
    size: Size | None = None

    @property
    def content(self) -> memoryview:
        """The bytes; empty before :func:`assign` has set them."""
        return memoryview(b"") if self.data is None else self.data


class Image(_Attachment, tag="image", kw_only=True):
    """An encoded file with a ``mime`` type, or interleaved RGB bytes without one."""

    width: U32 | None = None
    height: U32 | None = None
    mime: str | None = None


class Audio(_Attachment, tag="audio", kw_only=True):
    """An encoded file with a ``mime`` type, or little-endian float32 mono samples without one."""

    sample_rate: U32 | None = None
    mime: str | None = None


class Text(_Attachment, tag="text", kw_only=True):
    """UTF-8 text."""


class Video(_Attachment, tag="video", kw_only=True):
    """Reserved."""


class Unknown(msgspec.Struct, kw_only=True, tag_field="kind", tag="unknown"):
    """A kind unknown to this version; only the framing fields are read."""

    id: str = ""
    size: Size | None = None


Attachment = Union[Image, Audio, Text, Video, Unknown]  # noqa: UP007 - evaluated where `|` may not be
KINDS = frozenset({"image", "audio", "text", "video"})
KEYS = frozenset({"kind", "id", "bytes", "size", "width", "height", "sample_rate", "mime"})


def read(attachments: Sequence[Attachment], request_id: str, *, content_follows: bool = False) -> None:
    """Checks that each attachment of a parsed request has the fields that it needs.

    Raises DecodeError for an incomplete attachment.

    With ``content_follows``, the content of an attachment without ``bytes`` follows in a blob.
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
    """Whether ``text``, which decodes to ``data``, is its canonical encoding."""
    return base64.b64encode(data[-(len(data) % 3 or 3) :]).decode() == text[-4:]


# Framing.


def raw_size(attachments: Sequence[Attachment], max_bytes: int) -> int:
    """The number of raw bytes after the line. Raises AttachmentTooLarge before any of them is read."""
    total = 0
    for i, attachment in enumerate(attachments):
        total = add_size(i, attachment.size or 0, total, max_bytes)
    return total


def add_size(i: int, size: int, total: int, max_bytes: int) -> int:
    """``total`` plus the ``size`` of the attachment at index ``i``. Raises AttachmentTooLarge."""
    if size > max_bytes:
        raise AttachmentTooLarge(f"attachments[{i}] exceeds {max_bytes} byte cap", max_bytes)
    if total + size > MAX_TOGETHER_BYTES:
        raise AttachmentTooLarge(f"attachments exceed {MAX_TOGETHER_BYTES} byte cap", MAX_TOGETHER_BYTES)
    return total + size


def assign(attachments: Sequence[Attachment], raw: memoryview) -> None:
    """Gives each attachment with a ``size`` its part of ``raw``, which holds all of them, without copying."""
    start = 0
    for attachment in attachments:
        if attachment.size is not None:
            end = start + attachment.size
            if not isinstance(attachment, Unknown):
                attachment.data = raw[start:end]
            start = end


# Validation.


def check_list(attachments: Sequence[Attachment]) -> dict[str, Attachment]:
    """The attachments by their ids. Raises InvalidRequest."""
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
    """Raises InvalidRequest for more attachments than a request may have."""
    if len(attachments) > MAX_ATTACHMENTS:
        raise invalid(f"attachments must hold at most {MAX_ATTACHMENTS}")


def refuse_video(attachments: Sequence[Attachment]) -> None:
    """Raises AttachmentUnsupported if one is a video."""
    if any(isinstance(attachment, Video) for attachment in attachments):
        raise AttachmentUnsupported("video attachments are not supported; send single frames as images")


def check_contents(attachments: Sequence[Attachment]) -> None:
    """Raises InvalidRequest for bytes not in their declared format, AttachmentUnsupported for video."""
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
    """Releases the bytes of texts, once :func:`text_of` has read them."""
    for attachment in attachments:
        if isinstance(attachment, Text):
            attachment.data = None


def text_of(attachment: Text) -> str:
    """The text of a valid text attachment."""
    return fastpath.decode_utf8(attachment.content)
