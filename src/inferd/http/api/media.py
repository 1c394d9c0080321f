"""Decodes the base64 images and audio in a body to attachments of the v2 protocol. Nothing is fetched from a
URL."""

from __future__ import annotations

import base64
import binascii
import re

from inferd.client.messages import Attachment
from inferd.http.failures import BadField

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac"}
_MAGIC = (
    (re.compile(rb"\x89PNG\r\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
)
_DATA_URI = re.compile(r"data:([\w/+.-]*)(?:;[\w=.-]+)*;base64,", re.IGNORECASE)


def image_of_url(url: str, where: str) -> Attachment:
    """Decodes the image in a ``data:`` URI."""
    head = _DATA_URI.match(url)
    if head is None:
        raise BadField(
            where,
            f"{where} must be a data: URI in base64; this server fetches no pictures",
            "unsupported_value",
        )
    return image(url[head.end() :], where)


def image(text: str, where: str) -> Attachment:
    """Decodes an image from base64. Its first bytes determine the type. The type that the client declares is
    ignored."""
    data = _decode(text, where)
    for magic, mime in _MAGIC:
        if magic.match(data):
            return Attachment("image", data, mime=mime)
    raise BadField(where, f"{where} must be a PNG, JPEG, WebP or GIF picture", "unsupported_value")


def audio(text: str, form: str, where: str) -> Attachment:
    """Decodes audio from base64. ``form`` is ``wav``, ``mp3`` or ``flac``."""
    if form not in _AUDIO_TYPES:
        raise BadField(where, f"{where} must be in the format wav, mp3 or flac", "unsupported_value")
    return Attachment("audio", _decode(text, where), mime=_AUDIO_TYPES[form])


def _decode(text: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadField(where, f"{where} must be base64") from None
