"""Reads the body of a request within limits of size and time. A large body is parsed in a thread."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, cast

import orjson
from starlette.types import Receive, Scope

from inferd.http.failures import BadField, HttpFailure

MAX_BODY_BYTES = 64 * 1024 * 1024
# How long a client may take to send each PIECE_BYTES, or the rest of a body. The daemon's own sockets have
# the same limit.
PIECE_SECS = 30.0
PIECE_BYTES = 1024 * 1024
# A body of this size or more is parsed in a thread, so that it does not block other requests.
LARGE_BYTES = 128 * 1024
# The first bytes of gzip and of zstd.
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")

R = TypeVar("R")


class ClientGone(Exception):
    """The client closed the connection before its request was read or answered."""


async def read_bytes(scope: Scope, receive: Receive) -> bytes:
    """Reads the whole body. Raises ClientGone, and HttpFailure if the body is too large or too slow.

    If the ASGI scope has ``whole``, the server has already received the whole body with the head of the
    request.
    """
    if scope.get("whole"):
        return (await _piece(receive))[0]  # already received, so no time limit is needed
    length = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    if length is not None and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    chunks: list[bytes] = []
    size, piece_end = 0, PIECE_BYTES
    with _TimeLimit() as limit:
        while True:
            chunk, more = await _piece(receive)
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            if not more:
                return b"".join(chunks) if len(chunks) > 1 else chunks[0]
            if size >= piece_end:
                piece_end = size + PIECE_BYTES
                limit.extend()


async def _piece(receive: Receive) -> tuple[bytes, bool]:
    """Returns the next bytes of the body, and whether more follow."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


class _TimeLimit:
    """Cancels the ``with`` block after ``PIECE_SECS``, and raises HttpFailure. :meth:`extend` restarts the
    time.

    ``asyncio.timeout`` needs Python 3.11, and ``asyncio.wait_for`` would run each read in a separate task.
    """

    def __enter__(self) -> _TimeLimit:
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._loop = asyncio.get_running_loop()
        self._passed = False
        self._alarm = self._loop.call_later(PIECE_SECS, self._pass)
        return self

    def extend(self) -> None:
        self._alarm.cancel()
        self._alarm = self._loop.call_later(PIECE_SECS, self._pass)

    def _pass(self) -> None:
        self._passed = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.cancel()
        if self._passed and kind is asyncio.CancelledError:
            if sys.version_info >= (3, 11):
                self._task.uncancel()
            raise HttpFailure(
                "timeout", f"the body must send 1 MiB, or the rest, every {PIECE_SECS:g} seconds"
            ) from None


def _too_large() -> HttpFailure:
    return HttpFailure("too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")


async def until_gone(receive: Receive) -> None:
    """Waits until the client has closed its connection. Call this function only after the body has
    been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read(scope: Scope, receive: Receive, convert: Callable[[Any], R]) -> R:
    """Parses the body as JSON, and converts it with ``convert``. A large body is handled in a thread.

    Raises BadField, and the errors of :func:`read_bytes` and of ``convert``.
    """
    data = await read_bytes(scope, receive)
    if len(data) < LARGE_BYTES:
        return convert(_parsed(data))
    return await asyncio.to_thread(lambda: convert(_parsed(data)))


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if data.startswith(_COMPRESSED):
            raise BadField(None, "the body is compressed; send it uncompressed") from None
        if str(error).startswith("str is not valid UTF-8"):
            raise BadField(None, "the body is not UTF-8 text") from None
        raise BadField(None, f"the body is not valid JSON: {error}") from None
