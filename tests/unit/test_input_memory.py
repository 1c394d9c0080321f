"""The memory that requests hold before they are admitted: one budget, the shares of users, and early
refusals."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from inferd.engine.backend import Capabilities
from inferd.engine.mock import Mock
from inferd.errors import AttachmentTooLarge, InputMemoryFull
from inferd.serve.connection import LARGE_BYTES, PIECE_BYTES
from inferd.serve.memory import InputMemory
from inferd.serve.surfaces.v2 import BlockSurface
from tests.in_process import DONE, TOKEN, Client, Gate, ask, serving, until

both_loops = pytest.mark.both_loops
MIB = 1024 * 1024
REFUSED = "no memory is left for a request of this size; send it again later"


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


# The budget.


def test_a_request_reserves_and_gives_back() -> None:
    memory = InputMemory(100)
    request = memory.of("a")
    request.add(30)
    request.add(20)
    assert (memory.reserved, request.size) == (50, 50)
    request.release()
    request.release()
    assert (memory.reserved, request.size) == (0, 0)


def test_an_owner_holds_at_most_half_of_what_the_others_leave() -> None:
    memory = InputMemory(100)
    requests = [memory.of("a") for _ in range(3)]
    requests[0].add(30)
    requests[1].add(20)
    with pytest.raises(InputMemoryFull):
        requests[2].add(1)
    assert memory.reserved == 50
    other = memory.of("b")
    other.add(25)
    with pytest.raises(InputMemoryFull):
        other.add(1)
    requests[0].release()
    other.add(10)


def test_the_first_request_of_an_owner_only_has_to_fit() -> None:
    memory = InputMemory(100)
    memory.of("a").add(60)
    memory.of("b").add(40)
    with pytest.raises(InputMemoryFull):
        memory.of("c").add(1)


def test_a_request_that_can_never_fit_is_not_retryable() -> None:
    with pytest.raises(AttachmentTooLarge) as caught:
        InputMemory(100).of("a").add(101)
    assert (caught.value.cap, caught.value.retryable) == (100, False)


# Attachments.


def note(size: int, request_id: str = "q") -> bytes:
    request = {
        "id": request_id,
        "messages": [{"role": "user", "content": [{"type": "text", "attachment_id": "t"}]}],
        "attachments": [{"kind": "text", "id": "t", "size": size}],
    }
    return json.dumps(request).encode() + b"\n"


async def refused(client: Client, request_id: str) -> None:
    frame = await client.frame()
    assert frame == {"type": "error", "id": request_id, "code": "queue_full", "message": REFUSED}
    assert await client.rest() == b""


@both_loops
async def test_clients_that_withhold_the_last_byte_stay_within_the_budget(path: Path) -> None:
    async with serving(path, surface=BlockSurface(), max_input_memory_bytes=4 * MIB) as server:
        holding = [await server.connect() for _ in range(2)]
        for client in holding:
            await client.send(note(MIB) + bytes(MIB - 1))
        await until(lambda: server.service.memory.reserved == 2 * MIB)
        for number in range(16):
            late = await server.connect()
            await late.send(note(MIB, str(number)))  # and not one byte of the attachment
            await refused(late, str(number))
        assert server.service.memory.reserved == 2 * MIB
        for client in holding:
            await client.send(b"\0")
            assert (await client.frame())["type"] == "frame"
            assert (await client.frame())["type"] == "done"
        await until(lambda: server.service.memory.reserved == 0)


@both_loops
async def test_one_host_leaves_memory_to_another() -> None:
    async with serving("127.0.0.1:0", surface=BlockSurface(), max_input_memory_bytes=4 * MIB) as server:
        for _ in range(2):
            await (await server.connect()).send(note(MIB) + bytes(MIB - 1))
        await until(lambda: server.service.memory.reserved == 2 * MIB)
        port = int(server.listener.address.rpartition(":")[2])
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.bind(("127.0.0.2", 0))
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            other = Client(sock)
            await other.send(note(MIB) + bytes(MIB))
            assert (await other.frame())["type"] == "frame"


@both_loops
async def test_a_request_keeps_its_memory_until_it_has_ended(path: Path) -> None:
    gate = Gate()
    async with serving(
        path, Mock(pace=gate), surface=BlockSurface(), max_input_memory_bytes=2 * MIB
    ) as server:
        client = await server.connect()
        await client.send(note(MIB) + bytes(MIB))
        await until(lambda: gate.waiting == 1)
        late = await server.connect()
        await late.send(note(MIB))
        await refused(late, "q")
        client.close()
        await until(lambda: server.service.memory.reserved == 0)


@both_loops
async def test_an_unsupported_attachment_is_refused_before_its_bytes(path: Path) -> None:
    request = {
        "id": "q",
        "messages": [{"role": "user", "content": [{"type": "image", "attachment_id": "i"}]}],
        "attachments": [{"kind": "image", "mime": "image/png", "id": "i", "size": MIB}],
    }
    blind = Mock("m", capabilities=Capabilities(v2=True))
    async with serving(path, blind, surface=BlockSurface()) as server:
        client = await server.connect()
        await client.send(request)  # and not one byte of the image
        assert await client.frame() == {
            "type": "error",
            "id": "q",
            "code": "attachment_unsupported",
            "message": 'backend "m" takes no image attachments',
        }
        assert await client.rest() == b""


# Long lines.


@both_loops
async def test_a_long_line_is_reserved_while_it_comes(path: Path) -> None:
    cap = 64 * MIB
    async with serving(path, max_frame_bytes=cap, max_input_memory_bytes=8 * MIB) as server:
        client, late = await server.connect(), await server.connect()
        await client.send(b"{" + b" " * LARGE_BYTES)
        await until(lambda: server.service.memory.reserved == 2 * PIECE_BYTES)
        await late.send(b"{" + b" " * (2 * PIECE_BYTES))
        frame = await late.frame()
        assert (frame["id"], frame["code"], frame["message"]) == ("", "queue_full", REFUSED)
        assert await late.rest() == b""
        await client.send(json.dumps(ask()).encode()[1:] + b"\n")
        assert await client.line() + await client.line() == TOKEN + DONE
        await until(lambda: server.service.memory.reserved == 0)


@both_loops
async def test_a_long_line_after_a_running_request_is_not_read(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), max_frame_bytes=64 * MIB) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        (session,) = server.service.sessions
        line = json.dumps({**ask("r"), "unknown": "x" * 4 * MIB}).encode() + b"\n"
        sending = asyncio.ensure_future(client.send(line))
        splitter = session._conn._splitter
        await until(lambda: splitter.buffered > LARGE_BYTES)
        held = splitter.buffered
        for _ in range(100):
            await asyncio.sleep(0)
        assert splitter.buffered == held < 2 * LARGE_BYTES
        gate.open(4)
        assert await client.line() + await client.line() == TOKEN + DONE
        await sending
        assert (await client.frame())["id"] == "r"
