"""The two formats of a streamed answer: server-sent events (SSE), and lines of JSON (NDJSON).

Each event is one ``bytes`` object. SSE parsers skip comments. So comments can keep proxies and clients from
timing out while a long prompt is computed.

JSON may contain U+0085, U+2028 and U+2029, but some clients, such as users of httpx's ``iter_lines``, split a
stream into lines at these characters. So the characters are escaped.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

EVENT_STREAM = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"
DONE = b"data: [DONE]\n\n"
COMMENT = b": working\n\n"

_LINE_ENDS = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]")


def comment(text: str) -> bytes:
    """Encodes an SSE comment, which parsers skip. ``text`` must be one line."""
    return f": {text}\n\n".encode()


def sse(data: Any, event: str | None = None) -> bytes:
    """Encodes one server-sent event, whose data is ``data`` as JSON."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + _on_one_line(orjson.dumps(data)) + b"\n\n"


def ndjson(value: Any) -> bytes:
    """Encodes one line of NDJSON."""
    return _on_one_line(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))


def _on_one_line(data: bytes) -> bytes:
    if data.isascii():
        return data
    return _LINE_ENDS.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), data)
