"""Images as files, for a far end that takes no raw pixels.

What came as a file is passed on as it is: whether it can be read is for the far end to say. Making a file of
pixels takes tens of milliseconds for a megapixel, and belongs off the event loop.
"""

from __future__ import annotations

import base64
import io

from inferd.engine.backend import Media


def as_base64(image: Media) -> tuple[str, str]:
    """MIME type and file of an image, the file as base64; raw pixels become a PNG."""
    if image.mime:
        return image.mime, base64.b64encode(image.data).decode("ascii")
    from PIL import Image

    size = (image.width, image.height)
    file = io.BytesIO()
    Image.frombuffer("RGB", size, image.data, "raw", "RGB", 0, 1).save(file, "PNG", compress_level=1)
    return "image/png", base64.b64encode(file.getbuffer()).decode("ascii")
