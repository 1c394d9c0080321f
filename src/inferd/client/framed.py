"""The v2 protocol in length-prefixed frames instead of lines.

A request line has at most 64 KiB, and a request at most 32 attachments. A long conversation can exceed these
limits. A frame can have up to 64 MiB. Even in frames, long texts are sent as attachments, so that the daemon
need not parse these texts as part of the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inferd.client.messages import MessagesRequest, Outgoing
from inferd.client.protocol import Bytes, Incoming, encode
from inferd.errors import ProtocolError
from inferd.wire.bounds import BLOB, JSON, MAX_ATTACHMENTS, WIRE_VERSION

LONG_TEXT_BYTES = 16 * 1024
_LONGEST_HEAD = 6


def head(size: int, kind: int) -> bytes:
    """Encodes the header of a frame whose payload has ``size`` bytes."""
    data = bytearray()
    while size >= 0x80:
        data.append(size & 0x7F | 0x80)
        size >>= 7
    data += bytes((size, kind))
    return bytes(data)


class FramedMessagesRequest(MessagesRequest):
    """A :class:`MessagesRequest` for a framed connection."""

    def _fit(self, outgoing: Outgoing, body: Mapping[str, Any]) -> None:
        outgoing.move_long_texts(LONG_TEXT_BYTES, MAX_ATTACHMENTS)

    def _written(self, body: dict[str, Any], raw: Sequence[Bytes]) -> tuple[Bytes, ...]:
        attachments = body.get("attachments", ())
        if attachments:
            body["attachments"] = [{key: each[key] for key in each if key != "size"} for each in attachments]
        payload = encode({**body, "wire_version": WIRE_VERSION})
        pieces: list[Bytes] = [head(len(payload), JSON) + payload]
        for attachment, data in zip(attachments, raw, strict=True):
            size = attachment["size"]
            descriptor = encode({"type": "attachment_blob", "attachment_id": attachment["id"], "len": size})
            pieces += [head(len(descriptor), JSON) + descriptor + head(size, BLOB), data]
        return tuple(pieces)


class FramedIncoming(Incoming):
    """Splits the bytes that a framed connection receives into the payloads of frames. Each payload is the
    same JSON object as a line of a connection without frames."""

    def __init__(self, address: str, *, tcp: bool) -> None:
        super().__init__(address, tcp=tcp)
        self._held = bytearray()

    def _cut(self, data: bytes) -> None:
        self._held += data
        at = 0
        while (found := _head_at(self._held, at)) is not None:
            start, size = found
            self._check(size)
            if len(self._held) < start + size:
                break
            self._lines.append(bytes(self._held[start : start + size]))
            at = start + size
        if at:
            self._answered = True
            del self._held[:at]


def _head_at(held: bytearray, at: int) -> tuple[int, int] | None:
    """Returns the start and the size of the payload of the frame that begins at ``at``, or ``None`` if the
    frame's header is incomplete. Raises ProtocolError for an invalid header."""
    size = 0
    for place, byte in enumerate(held[at : at + _LONGEST_HEAD]):
        size |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            start = at + place + 2
            return None if start > len(held) else (start, size)
    if len(held) - at >= _LONGEST_HEAD:
        raise ProtocolError("the daemon sent something other than a frame; is this inferd's socket?")
    return None
