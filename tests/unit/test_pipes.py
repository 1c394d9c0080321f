"""Named pipes behind the listener, with sockets in the place of what only Windows has."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferd.engine.mock import Mock
from inferd.errors import AddressError
from inferd.serve import pipes
from inferd.serve.admission import Admission
from inferd.serve.auth import ApiKey
from inferd.serve.bind import Bound
from inferd.serve.hangup import HangupWatch
from inferd.serve.listener import ConnectionLimit, Listener
from inferd.serve.memory import InputMemory
from inferd.serve.observe.metrics import Metrics
from inferd.serve.peer import Peer
from inferd.serve.router import Router
from inferd.serve.session import Service
from inferd.serve.surfaces.v1 import TextSurface
from tests.in_process import DONE, TOKEN, Client, ask, until

NAME = r"\\.\pipe\inferd-test"
PEER = Peer("pipe", pid=7, sid="S-1-5-21-1")


class Sockets:
    """A system whose pipes are socket pairs; each instance waits until :meth:`connect` takes it."""

    def __init__(self) -> None:
        self.open: dict[int, socket.socket] = {}
        self.firsts: list[bool] = []
        self.broken = 0
        self._clients: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._clients.put(theirs)
        return ours

    def create(self, name: str, *, first: bool) -> int:
        assert name == NAME
        self.firsts.append(first)
        if self.broken and not first:
            self.broken -= 1
            raise OSError(1450, "Insufficient system resources")
        placeholder = socket.socket(socket.AF_UNIX)
        self.open[placeholder.fileno()] = placeholder
        return placeholder.fileno()

    def wait_for_client(self, handle: int) -> Peer:
        client = self._clients.get()
        before = self.open[handle]
        self.open[handle] = client
        before.close()
        return PEER

    def stop_waiting(self, name: str) -> None:
        self.connect().close()

    def forget_clients(self) -> None:
        """Those that came too late to be waited for."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._clients.get_nowait().close()

    def read(self, handle: int, size: int) -> bytes:
        return self.open[handle].recv(size)

    def write(self, handle: int, data: bytes) -> None:
        self.open[handle].sendall(data)

    def cancel(self, handle: int) -> None:
        self.open[handle].shutdown(socket.SHUT_RDWR)

    def close(self, handle: int) -> None:
        self.open.pop(handle).close()


class Pipe:
    """A listener on a pipe, and clients of it."""

    def __init__(self, system: Sockets, service: Service[object], places: ConnectionLimit) -> None:
        self.system = system
        self.service = service
        self.places = places
        self.clients: list[Client] = []

    def connect(self) -> Client:
        sock = self.system.connect()
        sock.setblocking(False)
        self.clients.append(Client(sock))
        return self.clients[-1]


@contextlib.asynccontextmanager
async def serving(mock: Mock | None = None, broken: int = 0) -> AsyncIterator[Pipe]:
    hangups = HangupWatch(asyncio.get_running_loop())
    service: Service[object] = Service(  # type: ignore[type-var]
        surface=TextSurface(),  # type: ignore[arg-type]
        admission=Admission(1, 10),
        router=Router([mock or Mock()]),
        hangups=hangups,
        metrics=Metrics(),
        api_key=ApiKey("for TCP alone"),
        max_frame_bytes=65536,
        max_attachment_bytes=65536,
        memory=InputMemory(1_000_000),
        write_timeout_secs=60,
    )
    system = Sockets()
    system.broken = broken
    places = ConnectionLimit(10)
    listener = Listener(pipes.open_pipe(system, NAME), service.serve, places)
    pipe = Pipe(system, service, places)
    try:
        yield pipe
    finally:
        await listener.close(5)
        for client in pipe.clients:
            client.close()
        hangups.close()
        await until(
            lambda: not any(thread.name.startswith("inferd-pipe") for thread in threading.enumerate())
        )
    system.forget_clients()
    assert not system.open, "every instance is closed at the end"


async def test_requests_are_answered_without_a_key() -> None:
    async with serving() as pipe:
        for client in (pipe.connect(), pipe.connect()):
            await client.send(ask(), ask())
            assert [await client.line() for _ in range(4)] == [TOKEN, DONE] * 2
        (first, _) = pipe.service.sessions
        assert first._peer == PEER
        assert first._peer.fields() == {"peer": "pipe", "peer_sid": "S-1-5-21-1", "peer_pid": 7}
    assert pipe.system.firsts[:2] == [True, False]


async def test_a_client_that_leaves_ends_its_session() -> None:
    async with serving() as pipe:
        client = pipe.connect()
        await client.send(ask())
        assert await client.line() == TOKEN
        client.close()
        await until(lambda: pipe.places.taken == 0)


async def test_a_session_that_ends_closes_the_pipe_behind_its_last_frame() -> None:
    async with serving() as pipe:
        client = pipe.connect()
        await client.send(b"nonsense\n")
        assert (await client.rest()).count(b"\n") == 1
        await until(lambda: pipe.places.taken == 0)


async def test_large_answers_and_requests_pass_whole() -> None:
    tape = [f"{n:01000d}" for n in range(1000)]
    async with serving(Mock(tape=tape)) as pipe:
        client = pipe.connect()
        await client.send(ask(messages=[{"role": "user", "content": "x" * 60_000}], max_tokens=1000))
        assert [(await client.frame())["content"] for _ in tape] == tape
        assert (await client.frame())["content"] == "".join(tape)


async def test_a_shortage_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_REST_SECS", 0.01)
    async with serving(broken=2) as pipe:
        for client in (pipe.connect(), pipe.connect()):
            await client.send(ask())
            assert await client.line() == TOKEN


async def test_who_comes_at_the_end_is_closed() -> None:
    system = Sockets()
    bound: Bound = pipes.open_pipe(system, NAME)
    late = system.connect()
    await until(lambda: len(system.firsts) == 2)
    bound.close()
    bound.close()
    with late:
        late.settimeout(10)
        assert late.recv(1) == b""
    await until(lambda: not system.open)
    system.forget_clients()


def test_a_pipe_that_cannot_be_made_is_one_sentence() -> None:
    class Taken(Sockets):
        def create(self, name: str, *, first: bool) -> int:
            raise OSError(5, "Access is denied")

    with pytest.raises(AddressError, match=r"cannot make the pipe .*: Access is denied; if another process"):
        pipes.open_pipe(Taken(), NAME)


def test_there_are_none_here() -> None:
    with pytest.raises(AddressError, match="named pipes exist on Windows only"):
        pipes.bind_pipe(Path(NAME))
