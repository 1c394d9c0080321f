"""The two forms in which an answer is streamed: server-sent events, and lines of JSON (NDJSON).

One event is one ``bytes`` object, written at once. A comment is what every SSE parser skips; it keeps proxies
and clients patient during a long prompt.
"""

from __future__ import annotations

from typing import Any

import orjson

EVENT_STREAM = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"
DONE = b"data: [DONE]\n\n"
COMMENT = b": working\n\n"


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event with a JSON value."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + orjson.dumps(data) + b"\n\n"


def ndjson(value: Any) -> bytes:
    """One line."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
