"""Raw bytes between lines: in both splitters, and in a connection on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from inferd import _fastpath, _purepath
from inferd.serve.connection import Connection
from inferd.serve.hangup import HangupWatch
from tests.cases import cases
from tests.in_process import PATIENCE_SECS, until

IMPLEMENTATIONS = pytest.mark.parametrize("impl", [_fastpath, _purepath], ids=["c", "python"])
both_loops = pytest.mark.both_loops
CAP = 16

# Each stream consists of lines. A line may announce a number of raw bytes that follow it.
CORPUS = {
    "between lines": [b"3", b"abc", b"x"],
    "newlines inside": [b"4", b"\n\r\n\n", b"x", b"2", b"\n\n"],
    "more than the cap without a newline": [b"70", b"\0" * 70, b"x"],
    "more than the cap with one at its end": [b"70", b"y" * 69 + b"\n", b"x"],
    "again at once": [b"1", b"\n", b"1", b"\n", b"1", b"\n"],
    "looks like a line": [b"5", b"3\nabc", b"x"],
    "at the very end": [b"x", b"8", b"\xff\xfe\n\n1234"],
    "much": [b"9000", bytes(range(250)) * 36, b"x"],
}
STREAMS = cases("parts", CORPUS.values())


def stream(parts: list[bytes]) -> bytes:
    raw = False
    out = b""
    for part in parts:
        out += part if raw else part + b"\n"
        raw = not raw and part.isdigit()
    return out


class Taker:
    """Takes a splitter's bytes as a connection does: a line, and then the bytes that it announces."""

    def __init__(self, splitter: Any) -> None:
        self._splitter = splitter
        self.parts: list[bytes] = []
        self._target = memoryview(b"")
        self._missing = 0

    def put(self, piece: bytes) -> None:
        if self._missing:
            direct = min(self._missing, len(piece))
            self._fill(piece[:direct])
            piece = piece[direct:]
        if piece:
            self._splitter.feed(piece)
        while not self._missing and (line := self._splitter.next_line()) is not None:
            self.parts.append(bytes(line))
            if line and bytes(line).isdigit():
                self._target = memoryview(bytearray(int(line)))
                taken = self._splitter.take_into(self._target)
                self._missing = len(self._target) - taken
                if not self._missing:
                    self.parts.append(bytes(self._target))

    def _fill(self, piece: bytes) -> None:
        at = len(self._target) - self._missing
        self._target[at : at + len(piece)] = piece
        self._missing -= len(piece)
        if not self._missing:
            self.parts.append(bytes(self._target))


@IMPLEMENTATIONS
class TestSplitter:
    @STREAMS
    def test_whole_and_byte_by_byte(self, impl: ModuleType, parts: list[bytes]) -> None:
        data = stream(parts)
        for pieces in ([data], [bytes([byte]) for byte in data]):
            taker = Taker(impl.LineSplitter(CAP))
            for piece in pieces:
                taker.put(piece)
            assert taker.parts == parts

    @STREAMS
    def test_every_split_point(self, impl: ModuleType, parts: list[bytes]) -> None:
        data = stream(parts)
        for at in range(min(len(data), 200)):
            taker = Taker(impl.LineSplitter(CAP))
            taker.put(data[:at])
            taker.put(data[at:])
            assert taker.parts == parts


@IMPLEMENTATIONS
def test_taking_fills_the_buffer_and_leaves_the_rest(impl: ModuleType) -> None:
    splitter = impl.LineSplitter(CAP)
    splitter.feed(b"a\nbcd\ne")
    assert bytes(splitter.next_line()) == b"a"
    target = bytearray(2)
    assert splitter.take_into(memoryview(target)) == 2
    assert target == b"bc"
    assert splitter.buffered == 3
    assert bytes(splitter.next_line()) == b"d"
    target = bytearray(9)
    assert splitter.take_into(memoryview(target)) == 1
    assert target == b"e" + bytes(8)
    assert splitter.take_into(memoryview(target)) == 0
    assert not splitter.has_line


@IMPLEMENTATIONS
def test_a_line_that_is_kept_survives_the_taking(impl: ModuleType) -> None:
    splitter = impl.LineSplitter(5000)
    splitter.feed(b"k" * 4000 + b"\n" + b"r" * 60)
    line = splitter.next_line()
    splitter.take_into(memoryview(bytearray(60)))
    for _ in range(3):
        splitter.feed(b"n" * 4000 + b"\n")
        assert bytes(splitter.next_line()) == b"n" * 4000
    assert line == b"k" * 4000


@IMPLEMENTATIONS
def test_a_read_only_buffer_is_refused(impl: ModuleType) -> None:
    splitter = impl.LineSplitter(CAP)
    splitter.feed(b"abc")
    with pytest.raises((TypeError, BufferError)):
        splitter.take_into(memoryview(b"xyz"))
    assert splitter.buffered == 3


# On a socket.


@contextlib.asynccontextmanager
async def connected(cap: int = CAP) -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection on which every line could carry raw bytes, and the client's end of it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    hangups = HangupWatch(asyncio.get_running_loop())
    connection = Connection(cap, 0, hangups, lambda line: True)
    await connection.open(ours, lambda: None)
    try:
        yield connection, theirs
    finally:
        theirs.close()
        await connection.close()
        hangups.close()


async def received(connection: Connection, count: int) -> list[bytes]:
    parts: list[bytes] = []
    while len(parts) < count:
        line = await asyncio.wait_for(connection.next_line(), PATIENCE_SECS)
        assert line is not None
        parts.append(line)
        if line.isdigit():
            raw = await asyncio.wait_for(connection.read_raw(int(line)), PATIENCE_SECS)
            assert raw is not None
            assert raw.readonly
            parts.append(bytes(raw))
    return parts


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


@both_loops
@STREAMS
async def test_a_connection_finds_the_bytes_however_they_come(parts: list[bytes]) -> None:
    data = stream(parts)
    cuts = range(0, min(len(data), 80))
    async with connected() as (connection, sock):
        for at in cuts:
            receiving = asyncio.ensure_future(received(connection, len(parts)))
            await send(sock, data[:at])
            await asyncio.sleep(0)
            await send(sock, data[at:])
            assert await receiving == parts


@both_loops
async def test_requests_and_their_bytes_may_be_sent_ahead() -> None:
    parts = [
        part for size in (5000, 1, 70_000, 3) for part in (b"%d" % size, random.Random(1).randbytes(size))
    ]
    async with connected() as (connection, sock):
        sending = asyncio.ensure_future(send(sock, stream(parts)))
        for at in range(0, len(parts), 2):
            await until(lambda: connection._splitter.has_line)  # the next request waits
            assert await received(connection, 2) == parts[at : at + 2]
        await sending


@both_loops
@cases("sent", [0, 1, 2999])
async def test_the_end_of_the_input_within_the_bytes(sent: int) -> None:
    async with connected() as (connection, sock):
        await send(sock, b"3000\n" + b"\n" * sent)
        assert await connection.next_line() == b"3000"
        reading = asyncio.ensure_future(connection.read_raw(3000))
        await until(lambda: connection._raw_waiter is not None)
        sock.shutdown(socket.SHUT_WR)
        assert await asyncio.wait_for(reading, PATIENCE_SECS) is None
        assert await connection.next_line() is None


@both_loops
async def test_nothing_is_read_beyond_a_line_before_its_bytes_are_asked_for() -> None:
    async with connected() as (connection, sock):
        reading = asyncio.ensure_future(connection.next_line())
        await asyncio.sleep(0)
        await send(sock, b"1000000\n")
        assert await reading == b"1000000"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sending = asyncio.ensure_future(send(sock, b"\0" * 1_000_000))
        await until(lambda: not connection._reading)
        assert not sending.done()
        assert connection._splitter.buffered <= 2 * 4096
        raw = await connection.read_raw(1_000_000)
        assert raw == b"\0" * 1_000_000
        await sending


@both_loops
async def test_a_size_that_is_only_announced_takes_no_memory() -> None:
    async with connected() as (connection, sock):
        await send(sock, b"1\nx")
        await received(connection, 2)
        before = resident_bytes()
        reading = asyncio.ensure_future(connection.read_raw(128 * 1024 * 1024))
        await asyncio.sleep(0)
        assert resident_bytes() - before < 8 * 1024 * 1024
        reading.cancel()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
