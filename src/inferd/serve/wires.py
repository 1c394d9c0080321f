"""Reads requests from a connection in one of two wire forms, and detects the form.

``Lines`` is newline-delimited JSON; the raw bytes of attachments may follow a line. ``Frames`` is the form of
:mod:`inferd.wire.framed`: length-prefixed frames. A connection keeps its form to the end. ``Lines`` and
``Frames`` raise FrameTooLarge, NotJson or MalformedFrame if the beginning of the next request cannot be
found.
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
"""Reserves memory for a number of bytes before they are read. Raises an error if the bytes must not be
read."""


class Wire(ABC):
    """The wire form of a connection. ``surface`` parses the connection's requests."""

    def __init__(self, conn: Connection, surface: Surface[Any]) -> None:
        self.surface = surface
        self._conn = conn

    @abstractmethod
    async def next_request(self) -> bytes | memoryview | None:
        """Returns the JSON of the next request, or ``None`` if the client sends no further request."""

    @abstractmethod
    async def receive(self, request: Any, max_attachment_bytes: int, reserve: Reserve) -> None:
        """Reads the contents of the attachments that follow the JSON of ``request``, and stores them in
        ``request``. Raises AttachmentTooLarge before reading a content that exceeds a limit."""


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
    """Length-prefixed frames. ``reserve`` is called before a large request is read. ``head`` is the head of
    the first frame, if that head has already been read."""

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
        """Returns the head of the next frame of a request. Raises MalformedFrame if the client sends no
        further frame."""
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
    """Detects the wire form of a new connection by its first bytes. ``surface`` is the surface of the socket.

    If the bytes fit neither form, the client gets the error of the socket's usual form: NotJson on a socket
    for lines, and MalformedFrame or FrameTooLarge on a socket for frames.
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
