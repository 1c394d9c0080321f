"""AWS's binary event stream, compared with botocore's decoder, and damaged streams."""

from __future__ import annotations

import binascii
import struct

import pytest

from inferd.engine.remote.bedrock import Decoder
from inferd.errors import BackendInternal
from tests.bedrock_server import chunk, message
from tests.cases import cases


def fed(*pieces: bytes) -> list[bytes]:
    decoder = Decoder()
    return [data for piece in pieces for data in decoder.feed(piece)]


RECORDED = (
    b"\x00\x00\x01\x0b\x00\x00\x00K8\xa0\xa5\xc5\x0b:event-type\x07\x00\x05chunk\r:content-type\x07\x00"
    b"\x10application/json\r:message-type\x07\x00\x05event"
    b'{"bytes":"eyJjaG9pY2VzIjpbeyJpbmRleCI6MCwibWVzc2FnZSI6eyJyb2xlIjoiYXNzaXN0YW50IiwiY29udGVudCI6Ikkif'
    b'Swic3RvcF9yZWFzb24iOm51bGx9XX0=","p":"abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"}\x11\x061?'
)
"""A message that Bedrock has sent."""


def test_a_recorded_message() -> None:
    (data,) = fed(RECORDED)
    assert data.startswith(b'{"choices":[{"index":0,"message":{"role":"assistant","content":"I"}')


def test_any_chunking_gives_the_same_messages() -> None:
    stream = chunk(b"one") + RECORDED + chunk(b"two")
    assert fed(*(stream[i : i + 1] for i in range(len(stream)))) == fed(stream)
    assert fed(stream)[::2] == [b"one", b"two"]


def test_messages_without_an_event_are_skipped() -> None:
    other = message({":event-type": "initial-response", ":message-type": "event"}, b"{}")
    assert fed(other + chunk(b"one")) == [b"one"]


@cases("at", [0, 7, 9, 20, 100, -1])
def test_a_flipped_bit_is_detected(at: int) -> None:
    damaged = bytearray(chunk(b"one" * 40))
    damaged[at] ^= 1
    with pytest.raises(BackendInternal, match="damaged"):
        fed(bytes(damaged) * 2)


def unsound_header() -> bytes:
    """A message with correct checksums and a header of an unknown type."""
    good = message({"a": "b"}, b"")
    start = good[:8] + good[8:12] + good[12:14] + b"\x63" + good[15:-4]
    return start + struct.pack("!I", binascii.crc32(start))


@cases(
    "data",
    [
        unsound_header(),
        message({":event-type": "chunk", ":message-type": "event"}, b"{}"),
        message({":event-type": "chunk", ":message-type": "event"}, b'{"bytes":"?"}'),
        message({":event-type": "chunk", ":message-type": "event"}, b"\xff"),
        message({":event-type": "chunk", ":message-type": "event"}, b'{"p":' + b"[" * 100_000),
    ],
)
def test_malformed_messages_with_valid_checksums_are_refused(data: bytes) -> None:
    with pytest.raises(BackendInternal, match="damaged"):
        fed(data)
