"""Each row of the framing table, the order of answers, slow readers and the API key, over a real socket, on
both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.mock import Mock
from inferd.serve import auth, connection, output
from tests.cases import cases
from tests.in_process import DONE, TOKEN, Client, Gate, ask, error, serving, until

pytestmark = pytest.mark.both_loops


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


# Invalid requests.

NOT_JSON = {
    "not JSON": b"hello\n",
    "a blank line": b"\n",
    "white space only": b" \t\r\n",
    "invalid UTF-8": b'{"id":"q","messages":[],"x":"\xff"}\n',
    "bytes after the object": b'{"id":"q","messages":[]} x\n',
    "a wrong field before the fault": b'{"id":7,"messages":[]\n',
}
MISFITS = {
    "an array": (b"[]\n", ""),
    "no messages": (b'{"id":"q"}\n', "q"),
    "id of the wrong type": (b'{"id":7,"messages":[]}\n', ""),
    "null id": (b'{"id":null,"messages":[]}\n', ""),
    "null grammar": (b'{"id":"q","messages":[],"grammar":null}\n', "q"),
    "unknown role": (b'{"id":"q","messages":[{"role":"tool","content":"x"}]}\n', "q"),
    "a key twice": (b'{"id":"q","messages":[],"messages":[]}\n', ""),
}


def decode_error(frame: dict[str, Any], request_id: str) -> bool:
    message = frame["message"]
    return message.startswith("decode: ") and frame == {
        "type": "error",
        "id": request_id,
        "code": "invalid_request",
        "message": message,
    }


@cases("name", NOT_JSON)
async def test_a_line_that_is_not_json_is_answered_and_closes(path: Path, name: str) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(NOT_JSON[name], ask())
        assert decode_error(await client.frame(), "")
        assert await client.rest() == b""


@cases("name", MISFITS)
async def test_json_that_is_not_a_request_is_answered_and_stays_open(path: Path, name: str) -> None:
    line, request_id = MISFITS[name]
    async with serving(path) as server:
        client = await server.connect()
        await client.send(line, ask())
        assert decode_error(await client.frame(), request_id)
        assert await client.line() + await client.line() == TOKEN + DONE


async def test_a_line_at_the_cap_is_accepted_and_one_byte_more_is_not(path: Path) -> None:
    line = json.dumps(ask()).encode()
    async with serving(path, max_frame_bytes=1024) as server:
        client = await server.connect()
        await client.send(line.ljust(1024) + b"\n")
        assert await client.line() + await client.line() == TOKEN + DONE
        await client.send(line.ljust(1025) + b"\n" + line + b"\n")
        assert await client.rest() == error("frame_too_large", "frame exceeds 1024 byte cap")


async def test_a_line_over_the_cap_is_refused_before_it_ends(path: Path) -> None:
    async with serving(path, max_frame_bytes=1024) as server:
        client = await server.connect()
        await client.send(b"x" * 1025)
        assert await client.line() == error("frame_too_large", "frame exceeds 1024 byte cap")
        client.finish_sending()
        assert await client.rest() == b""


async def test_an_endless_line_holds_no_more_than_the_cap_and_one_read(path: Path) -> None:
    async with serving(path, Mock(pace=Gate()), max_frame_bytes=1024) as server:
        client = await server.connect()
        await until(lambda: len(server.service.sessions) == 1)
        (session,) = server.service.sessions
        seen = set()
        for _ in range(64):
            await client.send(b"x" * 1000)
            await asyncio.sleep(0)
            seen.add(session._conn._splitter.buffered)
        assert max(seen) <= 1024 + 4096
        assert len(seen) > 1


async def test_an_invalid_request_leaves_the_connection_open_and_takes_no_place(path: Path) -> None:
    async with serving(path, queue_depth=0) as server:
        client = await server.connect()
        with await server.admission.of("mock").admit("another"):  # every place is taken
            await client.send({"id": "q", "messages": []})
            expected = error("invalid_request", "invalid request: messages must not be empty", "q")
            assert await client.line() == expected
        await client.send(ask())
        assert await client.line() == TOKEN


async def test_carriage_return_and_white_space_around_the_object_are_tolerated(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(b" \t" + json.dumps(ask()).encode() + b" \r\n")
        assert await client.line() + await client.line() == TOKEN + DONE


# The end of the input.


async def test_end_of_input_between_frames_closes_silently(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(ask())
        client.finish_sending()
        assert await client.rest() == TOKEN + DONE


async def test_end_of_input_at_once_closes_silently(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        client.finish_sending()
        assert await client.rest() == b""


async def test_the_rest_before_the_end_of_input_is_a_last_line(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(ask(), json.dumps(ask()).encode())
        client.finish_sending()
        assert await client.rest() == (TOKEN + DONE) * 2


# Order and pipelining.


async def test_pipelined_requests_are_served_in_order(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(b"".join(json.dumps(ask(str(n))).encode() + b"\n" for n in range(50)))
        client.finish_sending()
        frames = [json.loads(line) for line in (await client.rest()).splitlines()]
        assert [frame["id"] for frame in frames] == [str(n) for n in range(50) for _ in range(2)]
        assert [frame["type"] for frame in frames] == ["token", "done"] * 50


async def test_reading_pauses_while_a_request_runs_and_one_frame_waits(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask("a"))
        await until(lambda: gate.waiting == 1)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        line = json.dumps(ask("b")).encode() + b"\n"
        (session,) = server.service.sessions
        splitter = session._conn._splitter

        def send_until_full() -> int:
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.sock.send(line)
                    sent += 1
            return sent

        sent = send_until_full()
        await until(lambda: splitter.buffered > 0)
        sent += send_until_full()
        held = splitter.buffered
        await asyncio.sleep(0.01)
        assert splitter.buffered == held <= 4096
        assert send_until_full() == 0
        gate.open(2 * sent + 2)
        answers = 0
        while answers < sent + 1:
            answers += (await client.frame())["type"] == "done"


async def test_a_long_line_arrives_while_a_request_runs(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask("a"))
        await until(lambda: gate.waiting == 1)
        sending = asyncio.ensure_future(client.send(ask("b", x="y" * 60_000), ask("c", x="y" * 60_000)))
        gate.open(6)
        frames = [await client.frame() for _ in range(6)]
        await sending
        assert [frame["id"] for frame in frames] == ["a", "a", "b", "b", "c", "c"]


# Clients that do not read.


async def fill(client: Client, gate: Gate, server: Any) -> None:
    """Lets a request write until the client's unread bytes stop it."""
    (session,) = (s for s in server.service.sessions if s._context is not None)
    while not session._conn.blocked:
        gate.open()
        await asyncio.sleep(0)


async def test_a_slow_reader_pauses_its_own_request_and_no_other(path: Path) -> None:
    gate = Gate()
    big = Mock("big", tape=["x" * 20_000] * 400, pace=gate)
    async with serving(path, big, active_permits=2) as server:
        slow = await server.connect()
        await slow.send(ask(stream=True))
        await until(lambda: gate.waiting == 1)
        await fill(slow, gate, server)
        (stream,) = big.open_streams
        sent = stream._sent
        gate.open(10)
        big.tape, big.pace = ("mock-response",), None
        quick = await server.connect()
        await quick.send(ask())
        assert json.loads(await quick.line())["content"] == "mock-response"
        assert stream._sent == sent
        gate.open(1000)
        contents = 0
        while (frame := await slow.frame())["type"] == "token":
            contents += len(frame["content"])
        assert contents == 400 * 20_000
        assert frame["stop_reason"] == "end"


async def test_a_reader_slower_than_the_write_timeout_is_dropped(path: Path) -> None:
    mock = Mock(tape=["x" * 20_000] * 400)
    async with serving(path, mock, write_timeout_secs=0.05) as server:
        slow = await server.connect()
        await slow.send(ask())
        await until(lambda: server.admission.running == 1)
        await until(lambda: not server.service.sessions)
        assert server.admission.running == 0
        assert not (await slow.rest()).endswith(b'"model":"mock"}\n')


async def test_a_write_timeout_of_zero_waits(path: Path) -> None:
    mock = Mock(tape=["x" * 20_000] * 100)
    async with serving(path, mock, write_timeout_secs=0) as server:
        slow = await server.connect()
        await slow.send(ask())
        await until(lambda: any(session._conn.blocked for session in server.service.sessions))
        (session,) = server.service.sessions
        assert session._conn._write_alarm is None
        slow.finish_sending()
        assert (await slow.rest()).endswith(b'"model":"mock"}\n')


async def test_a_client_that_leaves_its_last_answer_unread_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "HIGH_WATER_BYTES", 1 << 30)  # the answer never stops the request
    async with serving(path, Mock(tape=["x" * 400_000]), write_timeout_secs=0.05) as server:
        slow = await server.connect()
        await slow.send(ask(stream=False))
        slow.finish_sending()
        await until(lambda: len(server.service.sessions) == 1)
        await until(lambda: not server.service.sessions)


# The key.

KEY = "k" * 32
AUTH = {"type": "auth", "key": KEY}


async def test_the_right_key_is_not_acknowledged_and_opens_the_connection() -> None:
    async with serving("127.0.0.1:0", api_key=KEY) as server:
        client = await server.connect()
        await client.send({**AUTH, "client": "test"}, ask(), ask())
        client.finish_sending()
        assert await client.rest() == (TOKEN + DONE) * 2


REJECTED = {
    "wrong key": b'{"type":"auth","key":"wrong"}\n',
    "a prefix of the key": json.dumps({"type": "auth", "key": KEY[:-1]}).encode() + b"\n",
    "a longer key": json.dumps({"type": "auth", "key": KEY + "k"}).encode() + b"\n",
    "no key": b'{"type":"auth"}\n',
    "the key twice": b'{"type":"auth","key":"wrong","k\\u0065y":"%s"}\n' % KEY.encode(),
    "key of the wrong type": b'{"type":"auth","key":7}\n',
    "another type": json.dumps({"type": "hello", "key": KEY}).encode() + b"\n",
    "a request": json.dumps(ask()).encode() + b"\n",
    "no JSON": b"GET / HTTP/1.1\r\n",
    "a blank line": b"\n",
    "invalid UTF-8": b'{"type":"auth","key":"\xff"}\n',
    "over 4 KiB": json.dumps({"x": "x" * 4096, **AUTH}).encode() + b"\n",
    "over 4 KiB without end": b"x" * 4097,
}


@cases("name", REJECTED)
async def test_without_the_key_not_a_byte_is_written(name: str) -> None:
    async with serving("127.0.0.1:0", api_key=KEY) as server:
        client = await server.connect()
        await client.send(REJECTED[name])
        with contextlib.suppress(ConnectionResetError):
            assert await client.receive() == b""
        await until(lambda: not server.service.sessions)


async def test_end_of_input_before_the_key() -> None:
    async with serving("127.0.0.1:0", api_key=KEY) as server:
        client = await server.connect()
        client.finish_sending()
        assert await client.rest() == b""


async def test_a_key_without_newline_before_the_end_of_input_counts() -> None:
    async with serving("127.0.0.1:0", api_key=KEY) as server:
        client = await server.connect()
        await client.send(json.dumps(AUTH).encode())
        client.finish_sending()
        assert await client.rest() == b""
        await until(lambda: not server.service.sessions)


async def test_an_auth_line_of_exactly_4_kib_is_read() -> None:
    line = json.dumps(AUTH).encode().ljust(auth.MAX_LINE_BYTES)
    async with serving("127.0.0.1:0", api_key=KEY) as server:
        client = await server.connect()
        await client.send(line + b"\n", ask())
        assert await client.line() == TOKEN


async def test_silence_is_closed_without_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "TIMEOUT_SECS", 0.05)
    monkeypatch.setattr(connection, "PIECE_SECS", 3600.0)
    async with serving("127.0.0.1:0", api_key=KEY) as server:
        client = await server.connect()
        await client.send(b'{"type":')
        assert await client.rest() == b""


@cases("address", ["unix", "tcp"])
async def test_where_no_key_is_needed_an_auth_line_is_ignored(path: Path, address: str) -> None:
    async with serving(path if address == "unix" else "127.0.0.1:0") as server:
        client = await server.connect()
        await client.send(AUTH, ask())
        assert await client.line() + await client.line() == TOKEN + DONE
        await client.send(AUTH)
        assert (await client.frame())["code"] == "invalid_request"


async def test_a_unix_socket_needs_no_key(path: Path) -> None:
    async with serving(path, api_key=KEY) as server:
        client = await server.connect()
        await client.send(ask())
        assert await client.line() == TOKEN
