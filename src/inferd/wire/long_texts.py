"""Parses large requests without holding the GIL for long.

A JSON decoder holds the GIL until it has read the whole line. So the long strings are first extracted without
the GIL, and replaced by placeholders. The JSON decoder then parses the short line with the placeholders.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64encode
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from inferd import fastpath
from inferd.errors import DecodeError, NotJson
from inferd.wire.attachments import is_canonical_base64

T = TypeVar("T", bound=msgspec.Struct)

LONG_BYTES = 256
# The largest line without its long strings: about four thousand messages.
MAX_REST_BYTES = 1024 * 1024
MAX_NAMES = 16_384

# A placeholder (the mark and a number) is also valid base64 of _MARK_DATA_BYTES, so that a placeholder can
# replace the content of an attachment.
_MARK_CHARS = 24
_MARK_DATA_BYTES = 24
_BASE64_STEP = 1024 * 1024


def parse(parse_small: Callable[[bytes], T], line: bytes | memoryview) -> T:
    """Parses the request on ``line``. ``parse_small`` is the surface's parser, and parses the line with
    placeholders. Raises DecodeError."""
    mark = secrets.token_hex(_MARK_CHARS // 2)
    try:
        rest, texts = fastpath.set_aside(line, LONG_BYTES, mark.encode())
    except ValueError as error:
        raise NotJson(f"expected one JSON object on the line: {error}") from None
    if len(rest) > MAX_REST_BYTES:
        raise DecodeError(f"a large request holds more than {MAX_REST_BYTES} bytes beside its long texts")
    if fastpath.count_names(rest) > MAX_NAMES:
        raise DecodeError(f"a large request holds more than {MAX_NAMES} names")
    texts_back = _Texts(mark, texts)
    try:
        request = parse_small(rest)
    except DecodeError as error:
        error.request_id = texts_back.of(error.request_id)
        raise
    texts_back.put_into(request)
    return request


class _Texts:
    """The extracted texts. A placeholder is ``mark`` followed by the number of the text that it stands
    for."""

    def __init__(self, mark: str, texts: list[str]) -> None:
        self._mark = mark
        self._raw_mark = re.compile(b'"%b([0-9]{8})"' % mark.encode())
        self._texts = texts

    def of(self, text: str) -> str:
        """Returns the extracted text if ``text`` is a placeholder, or else ``text`` itself."""
        return self._texts[int(text[_MARK_CHARS:])] if text.startswith(self._mark) else text

    def put_into(self, struct: msgspec.Struct) -> None:
        for key in struct.__struct_fields__:
            before = getattr(struct, key)
            after = self._put(before)
            if after is not before:
                setattr(struct, key, after)

    def _put(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.of(value)
        if isinstance(value, msgspec.Raw):
            text = bytes(value)
            return msgspec.Raw(self._raw_mark.sub(self._json, text)) if self._raw_mark.search(text) else value
        if isinstance(value, memoryview):
            return self._content(value)
        if isinstance(value, list):
            value[:] = map(self._put, value)
        elif isinstance(value, msgspec.Struct):
            self.put_into(value)
        return value

    def _json(self, mark: re.Match[bytes]) -> bytes:
        return b'"%b"' % fastpath.escape_json(self._texts[int(mark[1])])

    def _content(self, data: memoryview) -> memoryview:
        """Returns the content of an attachment. If ``data`` is a placeholder, decodes the extracted base64
        text, or else returns ``data``."""
        if len(data) != _MARK_DATA_BYTES:
            return data
        mark = b64encode(data).decode()
        text = self.of(mark)
        return data if text is mark else _from_base64(text)


def _from_base64(text: str) -> memoryview:
    parts = []
    for start in range(0, len(text), _BASE64_STEP):
        piece = text[start : start + _BASE64_STEP]
        try:
            part = msgspec.json.decode(f'"{piece}"'.encode(), type=bytes)
        except (msgspec.DecodeError, ValueError):
            part = b""
        last = start + _BASE64_STEP >= len(text)
        if not part or (not last and len(part) != _BASE64_STEP // 4 * 3):
            raise DecodeError("Invalid base64 encoded string - at `$.attachments`")
        parts.append(part)
    data = memoryview(b"".join(parts))
    if not is_canonical_base64(text, data):
        raise DecodeError("Invalid base64 encoded string - at `$.attachments`")
    return data
