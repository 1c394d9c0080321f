"""API key authentication of TCP connections.

The first line of the connection must be ``{"type":"auth","key":"…"}``. The daemon closes the connection
without sending a byte if the first line has another form or a wrong key, is longer than ``MAX_LINE_BYTES``,
or does not arrive within ``TIMEOUT_SECS``. So a port scan does not identify the service.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from inferd import fastpath
from inferd.errors import DecodeError
from inferd.wire import frames

MAX_LINE_BYTES = 4096  # room for the longest key; bounds the memory of unauthenticated clients
TIMEOUT_SECS = 10.0  # a legitimate client sends its key at once


class _AuthLine(msgspec.Struct):
    type: Literal["auth"]
    key: str


_KEYS = frozenset(_AuthLine.__struct_fields__)
_decoder = msgspec.json.Decoder(_AuthLine)


def _read(line: bytes) -> _AuthLine | None:
    try:
        found = frames.decode(_decoder, line)
        frames.pairs(line).require_unique(_KEYS, "$")
    except DecodeError:
        return None
    return found


def is_auth_line(line: bytes) -> bool:
    """Whether ``line`` has the form of an auth line. Does not check the key in the line."""
    return len(line) <= MAX_LINE_BYTES and _read(line) is not None


class ApiKey:
    """The configured key, which is not empty."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def opens_with(self, line: bytes) -> bool:
        """Whether ``line`` is an auth line with the configured key. The time of the comparison reveals
        nothing about the configured key."""
        given = _read(line) if len(line) <= MAX_LINE_BYTES else None
        return given is not None and fastpath.keys_equal(given.key.encode(), self._key)
