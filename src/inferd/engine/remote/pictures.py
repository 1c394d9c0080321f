"""Images as files, for a far end that takes no raw pixels.

What came as a file is passed on as it is: whether it can be read is for the far end to say.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import cast

from inferd.engine.backend import Media, Message

# Making a file of pixels takes tens of milliseconds for a megapixel.
_LARGE_BYTES = 256 * 1024


def are_large(messages: Iterable[Message]) -> bool:
    """Whether the images of a conversation take so long that they belong off the event loop."""
    contents = (message.content for message in messages if not isinstance(message.content, str))
    images = (part for content in contents for part in content if isinstance(part, Media))
    return sum(len(image.data) for image in images) >= _LARGE_BYTES


def as_base64(image: Media) -> tuple[str, str]:
    """MIME type and file of an image, the file as base64; raw pixels become a PNG."""
    if image.mime:
        return image.mime, base64.b64encode(image.data).decode("ascii")
    from PIL import Image

    size = (image.width, image.height)
    file = io.BytesIO()
    pixels = cast("bytes", image.data)  # any buffer does, which Pillow's types do not say
    Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1).save(file, "PNG", compress_level=1)
    return "image/png", base64.b64encode(file.getbuffer()).decode("ascii")
