"""Runs the part of the daemon that serves requests on the event loop of the test, and a client on the same
loop.

So a test has access to internals that a separate process would hide: the gate of the mock backend, the
counters of the queue, and exact timing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from inferd.engine.backend import Backend
from inferd.engine.mock import Mock
from inferd.serve import auth, bind
from inferd.serve.hangup import HangupWatch
from inferd.serve.listener import ConnectionLimit, Listener
from inferd.serve.memory import InputMemory
from inferd.serve.observe.metrics import Metrics
from inferd.serve.queues import Queues
from inferd.serve.router import Route, Router
from inferd.serve.session import Service
from inferd.serve.strangers import Strangers
from inferd.serve.surface import Surface
from inferd.serve.surfaces.v1 import TextSurface

PATIENCE_SECS = 100.0


TOKEN = b'{"type":"token","id":"q","content":"mock-response"}\n'
DONE = (
    b'{"type":"done","id":"q","content":"mock-response","usage":{"prompt_tokens":0,"completion_tokens":1},'
    b'"stop_reason":"end","backend":"mock","model":"mock"}\n'
)


def ask(request_id: str = "q", **more: Any) -> dict[str, Any]:
    return {"id": request_id, "messages": [{"role": "user", "content": "hi"}], **more}


def error(code: str, message: str, request_id: str = "") -> bytes:
    return (
        json.dumps(
            {"type": "error", "id": request_id, "code": code, "message": message}, separators=(",", ":")
        ).encode()
        + b"\n"
    )


def open_files() -> dict[int, str]:
    """The targets of the descriptors of this process."""
    found = {}
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found[int(fd.name)] = str(fd.readlink())
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Polls until the condition is true."""
    deadline = time.monotonic() + PATIENCE_SECS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


class Clock:
    """The clock of the running asyncio loop, plus the time that a test adds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._added, real = 0.0, self._loop.time
        self._loop.time = lambda: real() + self._added  # type: ignore[method-assign]

    async def advance(self, seconds: float) -> None:
        """Advances the clock; returns when all due callbacks have run."""
        self._added += seconds
        passed = self._loop.create_future()
        self._loop.call_at(self._loop.time(), passed.set_result, None)
        await passed


class Gate:
    """A mock's pace: each ``open`` lets one event pass; ``waiting`` counts the blocked events."""

    def __init__(self) -> None:
        self.waiting = 0
        self._passes = asyncio.Semaphore(0)

    async def __call__(self) -> None:
        self.waiting += 1
        try:
            await self._passes.acquire()
        finally:
            self.waiting -= 1

    def open(self, events: int = 1) -> None:
        for _ in range(events):
            self._passes.release()


class Client:
    """A raw connection; every wait fails after PATIENCE_SECS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._received = b""

    async def send(self, *data: bytes | dict[str, Any]) -> None:
        for item in data:
            raw = item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n"
            await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.sock, raw), PATIENCE_SECS)

    async def receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(self.sock, 65536), PATIENCE_SECS)

    async def line(self) -> bytes:
        """The next line with its newline; at the end of the stream, the remaining bytes."""
        while b"\n" not in self._received:
            chunk = await self.receive()
            if not chunk:
                break
            self._received += chunk
        line, newline, self._received = self._received.partition(b"\n")
        return line + newline

    async def frame(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await self.line())
        return frame

    async def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        while chunk := await self.receive():
            self._received += chunk
        rest, self._received = self._received, b""
        return rest

    def finish_sending(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


class Server:
    """A listener with its service; ``clients`` are closed with it."""

    def __init__(
        self, service: Service[Any], listener: Listener, places: ConnectionLimit, hangups: HangupWatch
    ) -> None:
        self.service = service
        self.listener = listener
        self.places = places
        self.admission = service.admission
        self._hangups = hangups
        self._clients: list[Client] = []

    async def connect(self) -> Client:
        address = self.listener.address
        host, _, port = address.rpartition(":")
        tcp = not address.startswith("/")
        sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        sock.setblocking(False)
        client = Client(sock)
        self._clients.append(client)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)) if tcp else address)
        return client

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await self.listener.close(PATIENCE_SECS)
        self._hangups.close()


@contextlib.asynccontextmanager
async def serving(
    address: Path | str,
    *backends: Backend,
    active_permits: int = 1,
    queue_depth: int = 10,
    api_key: str | None = None,
    max_frame_bytes: int = 65536,
    max_attachment_bytes: int = 64 * 1024 * 1024,
    max_input_memory_bytes: int = 384 * 1024 * 1024,
    write_timeout_secs: float = 60.0,
    idle_timeout_secs: float = 0.0,
    max_connections: int = 100,
    max_connections_per_uid: int = 0,
    max_strangers: int = 64,
    clock: Callable[[], float] = time.monotonic,
    surface: Surface[Any] | None = None,
    routes: Mapping[Backend, Route] | None = None,
    spill_after_secs: float = 0.0,
) -> AsyncIterator[Server]:
    """Serves ``backends``, one plain mock by default, on a Unix path or a TCP address; v1 by default."""
    hangups = HangupWatch(asyncio.get_running_loop())
    service = Service(
        surface=surface or TextSurface(),
        admission=Queues(active_permits, queue_depth),
        router=Router(backends or (Mock(),), clock, routes=routes),
        hangups=hangups,
        metrics=Metrics(),
        api_key=None if api_key is None else auth.ApiKey(api_key),
        max_frame_bytes=max_frame_bytes,
        max_attachment_bytes=max_attachment_bytes,
        memory=InputMemory(max_input_memory_bytes),
        write_timeout_secs=write_timeout_secs,
        idle_timeout_secs=idle_timeout_secs,
    )
    service.router.spill_after_secs = spill_after_secs
    if isinstance(address, Path):
        bound = bind.bind_unix(address, 0o660)
    else:
        bound = bind.bind_tcp(address, has_key=api_key is not None)
    places = ConnectionLimit(max_connections, max_connections_per_uid)
    listener = Listener(
        bound,
        service.serve,
        places,
        strangers=Strangers(max_strangers),
        asks_key=service.asks_key,
    )
    server = Server(service, listener, places, hangups)
    before = asyncio.all_tasks()
    try:
        yield server
    finally:
        await server.close()
    if left := asyncio.all_tasks() - before:  # a task of another server may be about to end
        _, left = await asyncio.wait(left, timeout=PATIENCE_SECS)
    assert not left, f"tasks left behind: {left}"
    assert not service.sessions
    assert service.memory.reserved == 0
    assert service.admission.running == service.admission.waiting == 0
    assert not any(backend.open_streams for backend in backends if isinstance(backend, Mock))
