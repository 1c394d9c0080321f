"""Checks and decodes the images and sounds of a request before the projector encodes them.

The limits here apply to one image or sound; the wire layer limits the number and the bytes of a request's
attachments. A decoded image can be a thousand times as large as its file, so its dimensions are checked
before a pixel is decoded.
"""

from __future__ import annotations

import io
import re

from inferd.engine.local import _llama
from inferd.engine.requests import Media
from inferd.errors import AttachmentUnsupported, InvalidRequest

MAX_PIXELS = 40_000_000  # a large camera's picture; 120 MB of RGB
MAX_SIDE = 16_384
MAX_SECONDS = 600  # of raw samples; models take 30 s at a time
LEAST_FILE_BYTES = 12
MAX_ENCODED_AUDIO_BYTES = 32 << 20  # ten minutes of uncompressed speech

IMAGE_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
# The first bytes of a file of each type. The decoder would treat any other file as a picture, without limits.
AUDIO_TYPES = {
    "audio/wav": re.compile(rb"RIFF....WAVE", re.DOTALL),
    "audio/mpeg": re.compile(rb"ID3|\xff[\xe0-\xff]"),
    "audio/flac": re.compile(rb"fLaC"),
}

Item = tuple[str, bool, int, int, "bytes | memoryview"]
"""The engine's form of an attachment: (kind, whether it is an encoded file, width, height, bytes). The bytes
are never empty."""


def to_item(media: Media, projector: _llama.Projector | None) -> Item:
    """Returns the engine's form of an attachment. Raises ``AttachmentUnsupported`` if the model does not
    support the attachment's kind or media type. Raises ``InvalidRequest`` if the attachment is invalid or the
    request is cancelled."""
    _llama.stop_if_cancelled()
    if projector is None or not (projector.vision if media.kind == "image" else projector.audio):
        raise AttachmentUnsupported(f"the model takes no {media.kind} attachments")
    if media.kind == "image":
        return _image(media)
    return _audio(media, projector.sample_rate)


def _image(media: Media) -> Item:
    if not media.mime:
        _check_size(media.width, media.height)
        size = media.width * media.height * 3
        if len(media.data) != size:
            raise InvalidRequest(
                f"an image of {media.width} x {media.height} has {size} bytes of RGB, not {len(media.data)}"
            )
        return "image", False, media.width, media.height, media.data
    if media.mime not in IMAGE_TYPES:
        raise AttachmentUnsupported(
            f"images of type {media.mime!r} are not read; use {', '.join(IMAGE_TYPES)}"
        )
    # Already imported at the start of a model with a projector; other models never need it.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(media.data), formats=(IMAGE_TYPES[media.mime],)) as picture:
            _check_size(*picture.size)
            picture.load()
            pixels = picture if picture.mode == "RGB" else picture.convert("RGB")
            return "image", False, pixels.width, pixels.height, pixels.tobytes()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(f"the image is out of bounds: it has more than {MAX_PIXELS} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise InvalidRequest(f"the image is not {media.mime} or is damaged") from None


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise InvalidRequest(
            f"an image of {width} x {height} is out of bounds: 1 to {MAX_SIDE} a side, {MAX_PIXELS} pixels"
        )


def _audio(media: Media, sample_rate: int) -> Item:
    if media.mime:
        if media.mime not in AUDIO_TYPES:
            raise AttachmentUnsupported(
                f"sounds of type {media.mime!r} are not read; use {', '.join(AUDIO_TYPES)}"
            )
        if not 0 < len(media.data) <= MAX_ENCODED_AUDIO_BYTES:
            raise InvalidRequest(f"a sound has 1 to {MAX_ENCODED_AUDIO_BYTES} bytes")
        if len(media.data) < LEAST_FILE_BYTES or not AUDIO_TYPES[media.mime].match(media.data):
            raise InvalidRequest(f"the sound is not {media.mime}")
        return "audio", True, 0, 0, media.data
    if media.sample_rate != sample_rate:
        raise InvalidRequest(f"the model takes samples at {sample_rate} Hz, not at {media.sample_rate} Hz")
    if len(media.data) % 4 or not sample_rate // 10 * 4 <= len(media.data) <= MAX_SECONDS * sample_rate * 4:
        raise InvalidRequest(f"samples are little-endian float32, at least 0.1 s and at most {MAX_SECONDS} s")
    return "audio", False, 0, 0, media.data
