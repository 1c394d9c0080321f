"""Reads the body of a request within limits of size and time, and parses large ones in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from starlette.types import Message, Receive, Scope

from inferd.http.failures import BadField, HttpFailure

MAX_BODY_BYTES = 64 * 1024 * 1024
# Time for each MiB, or the rest; the same as on the daemon's own sockets.
PIECE_SECS = 30.0
PIECE_BYTES = 1024 * 1024
# A body of this size or more is parsed in a thread, so that it does not block other requests.
LARGE_BYTES = 128 * 1024

R = TypeVar("R")


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_bytes(scope: Scope, receive: Receive) -> bytes:
    """Reads the whole body. Raises HttpFailure if it is too large or too slow, and ClientGone."""
    length = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    if length is not None and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    chunks: list[bytes] = []
    size, piece_end = 0, PIECE_BYTES
    loop = asyncio.get_running_loop()
    limit = loop.time() + PIECE_SECS
    while True:
        message = await _within(receive, limit - loop.time())
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(chunks) if len(chunks) > 1 else chunks[0]
        if size >= piece_end:
            piece_end = size + PIECE_BYTES
            limit = loop.time() + PIECE_SECS


async def _within(receive: Receive, seconds: float) -> Message:
    try:
        return await asyncio.wait_for(receive(), seconds)
    except asyncio.TimeoutError:
        raise HttpFailure(
            "timeout", f"the body must send 1 MiB, or the rest, every {PIECE_SECS:g} seconds"
        ) from None


def _too_large() -> HttpFailure:
    return HttpFailure("too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")


async def until_gone(receive: Receive) -> None:
    """Waits until the client has closed its connection. The body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read(scope: Scope, receive: Receive, convert: Callable[[Any], R]) -> R:
    """Parses the body as JSON and converts it, in a thread if it is large.

    Raises BadField, as :func:`read_bytes`, and as ``convert``.
    """
    data = await read_bytes(scope, receive)
    if len(data) < LARGE_BYTES:
        return convert(_parsed(data))
    return await asyncio.to_thread(lambda: convert(_parsed(data)))


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadField(None, f"the body is not valid JSON: {error}") from None
