"""Encodes images as files, for servers that do not accept raw pixels.

An image that is already an encoded file is passed on unchanged. The server decides whether it can read the
file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import cast

from inferd.engine.requests import Media, Message

# Encoding a megapixel takes tens of milliseconds.
_LARGE_BYTES = 256 * 1024


def are_large(messages: Iterable[Message]) -> bool:
    """Returns whether encoding the images of a conversation would block the event loop for too long."""
    contents = (message.content for message in messages if not isinstance(message.content, str))
    images = (part for content in contents for part in content if isinstance(part, Media))
    return sum(len(image.data) for image in images) >= _LARGE_BYTES


def as_base64(image: Media) -> tuple[str, str]:
    """Returns the MIME type of an image, and the content of its file as base64.

    Encodes raw pixels as a PNG file.
    """
    if image.mime:
        return image.mime, base64.b64encode(image.data).decode("ascii")
    from PIL import Image

    size = (image.width, image.height)
    file = io.BytesIO()
    pixels = cast("bytes", image.data)  # Pillow takes any buffer, unlike its type annotation
    Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1).save(file, "PNG", compress_level=1)
    return "image/png", base64.b64encode(file.getbuffer()).decode("ascii")
