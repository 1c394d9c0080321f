"""The two wire forms of requests, and their detection.

``Lines`` is newline-delimited JSON, and raw bytes may follow a line. ``Frames`` is the framed wire of
:mod:`inferd.wire.framed`. A connection keeps its form to the end. Both classes raise FrameTooLarge, NotJson
or MalformedFrame if the rest of the stream cannot be parsed reliably.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from inferd.errors import InferdError, MalformedFrame, NotJson
from inferd.serve.connection import LARGE_BYTES, Connection
from inferd.serve.surface import Surface
from inferd.wire import attachments, framed

Reserve = Callable[[int], None]
"""Reserves memory for a number of bytes before they are read. Raises if they must not be read."""


class Wire(ABC):
    """The form of a connection. ``surface`` parses its requests."""

    def __init__(self, conn: Connection, surface: Surface[Any]) -> None:
        self.surface = surface
        self._conn = conn

    @abstractmethod
    async def next_request(self) -> bytes | memoryview | None:
        """Returns the JSON of the next request, or ``None`` at the end of the input."""

    @abstractmethod
    async def receive(self, request: Any, max_attachment_bytes: int, reserve: Reserve) -> None:
        """Reads the content that follows the request. Raises FrameTooLarge as soon as it is known that the
        content exceeds the limit."""


class Lines(Wire):
    async def next_request(self) -> bytes | memoryview | None:
        return await self._conn.next_line()

    async def receive(self, request: Any, max_attachment_bytes: int, reserve: Reserve) -> None:
        size = self.surface.raw_size(request, max_attachment_bytes)
        if size:
            reserve(size)
            raw = await self._conn.read_raw(size)
            if raw is None:
                raise NotJson(f"the input ends within the {size} bytes of the attachments", request.id)
            self.surface.assign(request, raw)


class Frames(Wire):
    """The framed form. ``reserve`` reserves memory for large requests. ``head`` is the head of the first
    frame, if it has already been read."""

    def __init__(
        self, conn: Connection, surface: Surface[Any], reserve: Reserve, head: framed.Head | None = None
    ) -> None:
        super().__init__(conn, surface)
        conn.framed = True
        self._reserve = reserve
        self._head = head

    async def next_request(self) -> bytes | memoryview | None:
        head, self._head = self._head or await self._conn.next_head(), None
        if head is None:
            return None
        if head[1] > LARGE_BYTES:
            self._reserve(2 * head[1])  # twice: the bytes read and the parsed values
        payload = await self._payload(head, framed.JSON, "")
        return payload if len(payload) > LARGE_BYTES else bytes(payload)

    async def receive(self, request: Any, max_attachment_bytes: int, reserve: Reserve) -> None:
        total = 0
        for i, attachment in framed.expected(request):
            head = await self._next_head(request.id)
            if head[1] > framed.MAX_DESCRIPTOR_BYTES:
                raise MalformedFrame("expected an attachment_blob descriptor", request.id)
            descriptor = await self._payload(head, framed.JSON, request.id)
            size = framed.read_descriptor(descriptor, attachment, request.id)
            total = attachments.add_size(i, size, total, max_attachment_bytes)
            head = await self._next_head(request.id)
            if head[1] != size:
                raise MalformedFrame(f"blob length {head[1]} is not the descriptor's {size}", request.id)
            reserve(size)
            framed.assign(attachment, await self._payload(head, framed.BLOB, request.id))

    async def _next_head(self, request_id: str) -> framed.Head:
        """Returns the head of the next frame. Raises MalformedFrame if the input ends, since the request
        needs the frame."""
        head = await self._conn.next_head(begun=True)
        if head is None:
            raise MalformedFrame("stream ended before all attachments were sent", request_id)
        return head

    async def _payload(self, head: framed.Head, kind: int, request_id: str) -> memoryview:
        if head[0] != kind:
            wanted = "JSON" if kind == framed.JSON else "blob"
            raise MalformedFrame(f"expected a {wanted} frame", request_id)
        payload = await self._conn.read_raw(head[1])
        if payload is None:
            raise MalformedFrame("stream ended mid-frame", request_id)
        return payload


async def recognise(conn: Connection, surface: Surface[Any], reserve: Reserve) -> Wire:
    """Detects the form of a new connection to a socket of ``surface`` by its first bytes.

    If the bytes fit neither form, the error is that of the socket's own form.
    """
    frames = surface.frames
    if frames is None:
        return Lines(conn, surface)
    is_framed = await conn.opening(framed.is_framed)
    head = None
    if surface is frames:
        is_framed = is_framed or not framed.could_be_json(conn.first(framed.LONGEST_OPENING))
    elif is_framed:
        try:
            head = await conn.next_head()
        except InferdError:
            raise NotJson("expected one JSON object on the line, or a frame; the bytes are neither") from None
    if is_framed:
        return Frames(conn, frames, reserve, head)
    conn.begin_lines()
    return Lines(conn, surface.lines)
