"""The messages between daemon and engine: complete, in order, and always validated."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from inferd.engine.backend import Need, Needs
from inferd.engine.local.child import messages as m
from inferd.engine.local.child import process, spawned
from inferd.engine.local.child.link import HEADER, MAX_BODY_BYTES, Link
from inferd.engine.requests import GenerateRequest, Media, Message, Tool
from inferd.errors import ModelError
from tests.in_process import PATIENCE_SECS, until


class End:
    """A link that records the received messages."""

    def __init__(self, sock: socket.socket) -> None:
        self.seen: list[tuple[int, int, bytes]] = []
        self.fds: list[int] = []
        self.closed = False
        self.link = Link(sock, self._take, self._close)

    def _take(self, kind: int, job: int, body: bytes, fds: list[int]) -> None:
        self.seen.append((kind, job, body))
        self.fds += fds

    def _close(self) -> None:
        self.closed = True


async def test_messages_of_every_size_arrive_in_order() -> None:
    one, other = map(End, socket.socketpair())
    sent = [(n % 256, n, os.urandom(size)) for n, size in enumerate((0, 1, 100, 300_000, 5, 2_000_000, 0, 7))]
    for kind, job, body in sent:
        one.link.send(kind, job, body)
    await until(lambda: len(other.seen) == len(sent))
    assert other.seen == sent
    one.link.close()
    await until(lambda: other.closed)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such sockets")
async def test_all_messages_of_one_turn_leave_in_one_write() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps each write apart
    with closing(theirs):
        one = End(ours)
        for job in range(6):
            one.link.send(3, job, b"token")
        received = await asyncio.to_thread(theirs.recv, 65536)
        assert received == b"".join(HEADER.pack(5, job, 3, 0) + b"token" for job in range(6))
        one.link.close()


async def test_descriptors_come_with_their_message() -> None:
    one, other = map(End, socket.socketpair())
    pipes = [os.pipe() for _ in range(3)]
    for n, (_, write) in enumerate(pipes):
        one.link.send(1, n, b"x" * 200_000, [write])
        one.link.send(2, n)
    await until(lambda: len(other.seen) == 6)
    for (read, _), fd in zip(pipes, other.fds, strict=True):
        os.write(fd, b"hello")
        assert os.read(read, 10) == b"hello"
        os.close(read)
        os.close(fd)
    one.link.close()
    other.link.close()


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(MAX_BODY_BYTES + 1, 0, 1, 0),
        HEADER.pack(0, 0, 1, 200),
        HEADER.pack(0, 0, 1, 1),  # a descriptor is announced and none is there
    ],
)
async def test_a_peer_that_violates_the_protocol_is_disconnected(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    with closing(theirs):
        theirs.sendall(data)
        await until(lambda: end.closed)
        assert end.seen == []


# An engine process that answers its load with the bytes MESSAGE.
LYING = """
import socket
link = socket.socket(fileno=0)
link.recv(65536)
link.sendall(MESSAGE)
while link.recv(65536): pass
"""

# An engine process that answers everything with the bytes MESSAGE.
NAGGING = """
import socket
link = socket.socket(fileno=0)
while link.recv(65536): link.sendall(MESSAGE)
"""


def message(kind: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), 9, kind, 0) + body


class Liar:
    """Loads in a process that runs ``program``. It gives too little room whenever it is asked for memory."""

    def __init__(self, program: str, answer: bytes, path: Path, patch: pytest.MonkeyPatch) -> None:
        (path / "lying.py").write_text(program.replace("MESSAGE", repr(answer)))
        patch.setattr(spawned, "PROGRAM", "lying")
        patch.setattr(spawned, "environment", lambda: {"PYTHONPATH": str(path)})
        self.ends: list[str] = []
        self.asked: list[Needs] = []
        self.engine = process.EngineProcess("n", self.ends.append, process.Patience(hang_secs=1e6))

    async def grant(self, needs: Needs) -> m.Granted:
        self.asked.append(needs)
        assert len(self.asked) < 10
        return m.Granted(room={})

    async def load(self) -> None:
        load = m.Load(name="n", model="m", path="p")
        loading = self.engine.load(load, (), lambda phase, details: None, self.grant)
        await asyncio.wait_for(loading, PATIENCE_SECS)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (m.LOADED, b"\xc1"),  # no msgpack
        (m.LOADED, m.encode("ready")),  # another type
        (m.PROGRESS, m.encode(("mmap", 1))),
        (m.FRAMES, b"{}"),  # of a job that nobody has sent
        (200, b""),  # of no kind
        (m.LOADED, m.encode({"gpus": {"G0": -1}})),
        (m.LOADED, m.encode({"gpus": {"": 1}})),  # would count as RAM
        (m.LOADED, m.encode({"gpus": {f"G{n}": 1 for n in range(1000)}})),
        (m.NEEDS, m.encode(((Need(1, -1, {}),), {}, {}))),
        (m.NEEDS, m.encode(((Need(1, 1, {}),) * 1000, {}, {}))),
        (m.NEEDS, m.encode(((Need(1, 1, {}, -2),), {}, {}))),
        (m.NEEDS, m.encode(((), {"G0": -1}, {}))),
    ],
)
async def test_an_engine_that_sends_an_invalid_message_is_killed(
    kind: int, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = Liar(LYING, message(kind, body), tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="it sent an unknown message"):
        await liar.load()
    await until(lambda: liar.ends == ["it sent an unknown message"])


async def test_an_engine_that_asks_again_and_again_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_BUSY_BEAT_SECS", 1e6)  # it would answer a ping, too
    liar = Liar(NAGGING, message(m.NEEDS, m.encode(((), {}, {}))), tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="it sent an unknown message"):
        await liar.load()
    assert len(liar.asked) == 2


async def test_no_room_is_made_for_a_load_that_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = message(m.LOAD_FAILED, m.encode(m.failure(ModelError("it is broken"))))
    liar = Liar(LYING, message(m.NEEDS, m.encode(((), {}, {}))) + failed, tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="it is broken"):
        await liar.load()
    assert not liar.asked
    await liar.engine.close()


async def test_a_closed_link_holds_no_buffer() -> None:
    ours, theirs = socket.socketpair()
    tracemalloc.start()
    try:
        held = End(ours)
        before = tracemalloc.get_traced_memory()[0]
        held.link.close()
        assert tracemalloc.get_traced_memory()[0] < before - 200_000
    finally:
        tracemalloc.stop()
        theirs.close()


async def test_a_message_may_come_byte_by_byte() -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    with closing(theirs):
        for byte in HEADER.pack(3, 9, 4, 0) + b"abc":
            theirs.send(bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: bool(end.seen))
    assert end.seen == [(4, 9, b"abc")]
    end.link.close()


def request(*messages: Message) -> GenerateRequest:
    return GenerateRequest(messages=messages, tools=(Tool("t", "d", "{}"),), stop=("x",))


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_request_crosses_unchanged_also_by_a_memory_file(size: int) -> None:
    picture = Media("image", memoryview(os.urandom(size)), mime="image/png")
    sound = Media("audio", memoryview(b""), sample_rate=16000)
    sent = request(Message("system", "a"), Message("user", ("look", picture, "hear", sound)))
    body, fds = m.pack_generate(sent)
    assert bool(fds) == (size > m.INLINE_BYTES)
    got = m.unpack_generate(body, fds)
    assert got.tools == sent.tools
    assert got.messages[0] == sent.messages[0]
    parts = got.messages[1].content
    assert parts[0] == "look"
    assert isinstance(parts[1], Media)
    assert isinstance(parts[3], Media)
    assert (parts[1].mime, bytes(parts[1].data)) == ("image/png", bytes(picture.data))
    assert (parts[3].sample_rate, len(parts[3].data)) == (16000, 0)


def test_a_body_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        m.unpack(int, m.pack("text")[0], ())
    with pytest.raises(msgspec.DecodeError):
        m.unpack(int, b"", ())
    with pytest.raises(msgspec.DecodeError):
        m.unpack(int, struct.pack("<I", 1 << 30), ())


# An engine process with an error in a callback of its event loop.
FAILING = """
from inferd.engine.local.child import host

class Failing(host.Host):
    def __init__(self, *args):
        super().__init__(*args)
        self._loop.call_soon(lambda: 1 / 0)

host.Host = Failing
host.serve()
"""


async def test_an_error_of_the_event_loop_reaches_the_daemons_log() -> None:
    daemon, engine = socket.socketpair()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FAILING, stdin=engine)
    engine.close()
    end = End(daemon)
    load = m.Load(name="n", model="m", path="p", n_parallel=1, cage="off", log_level=1)
    end.link.send(m.LOAD, 0, m.encode(load), [os.open(os.devnull, os.O_RDONLY)])
    await until(lambda: any(b"asyncio_error" in body for kind, _, body in end.seen if kind == m.LOG))
    end.link.close()
    await process.wait()
