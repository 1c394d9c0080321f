"""Every row of the framing and v1 tables, over a real socket, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from inferd import log
from inferd.engine.backend import (
    Backend,
    Capabilities,
    Done,
    Event,
    Frames,
    GenerateRequest,
    Stream,
    Timings,
    Usage,
)
from inferd.engine.mock import Mock
from inferd.errors import BackendInternal, InferdError, InvalidRequest, NotReady, Unavailable
from inferd.serve import auth, connection
from tests.in_process import Client, Gate, serving, until

pytestmark = pytest.mark.both_loops

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


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


# What is not a request.

BAD_LINES = {
    "not JSON": (b"hello\n", ""),
    "an array": (b"[]\n", ""),
    "a blank line": (b"\n", ""),
    "white space only": (b" \t\r\n", ""),
    "invalid UTF-8": (b'{"id":"q","messages":[],"x":"\xff"}\n', ""),
    "no messages": (b'{"id":"q"}\n', "q"),
    "id of the wrong type": (b'{"id":7,"messages":[]}\n', ""),
    "null id": (b'{"id":null,"messages":[]}\n', ""),
    "null grammar": (b'{"id":"q","messages":[],"grammar":null}\n', "q"),
    "unknown role": (b'{"id":"q","messages":[{"role":"tool","content":"x"}]}\n', "q"),
    "a key twice": (b'{"id":"q","messages":[],"messages":[]}\n', ""),
    "bytes after the object": (b'{"id":"q","messages":[]} x\n', ""),
}


@pytest.mark.parametrize("name", BAD_LINES)
async def test_what_is_no_request_is_answered_once_and_closed(path: Path, name: str) -> None:
    line, request_id = BAD_LINES[name]
    async with serving(path) as server:
        client = await server.connect()
        await client.send(line, ask())
        frame = await client.frame()
        assert frame["message"].startswith("decode: ")
        assert frame == {
            "type": "error",
            "id": request_id,
            "code": "invalid_request",
            "message": frame["message"],
        }
        assert await client.rest() == b""


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
        server.admission.running = server.admission.active_permits  # every place is taken
        client = await server.connect()
        await client.send({"id": "q", "messages": []})
        expected = error("invalid_request", "invalid request: messages must not be empty", "q")
        assert await client.line() == expected
        server.admission.running = 0
        await client.send(ask())
        assert await client.line() == TOKEN


async def test_carriage_return_and_white_space_around_the_object_are_tolerated(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(b" \t" + json.dumps(ask()).encode() + b" \r\n")
        assert await client.line() + await client.line() == TOKEN + DONE


# The end of the input.


async def test_end_of_input_between_frames_closes_without_a_word(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(ask())
        client.finish_sending()
        assert await client.rest() == TOKEN + DONE


async def test_end_of_input_at_once_closes_without_a_word(path: Path) -> None:
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


# The stages and what they answer.


class Scripted(Backend):
    """Plays its events; an exception among them is raised where it stands."""

    kind = "llamacpp"
    name = "scripted"
    model = "tiny"

    def __init__(self, *events: Event | Exception) -> None:
        self.events = events
        self.requests: list[GenerateRequest] = []
        self.closed = 0

    def ready(self) -> bool:
        return True

    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def start(self) -> None: ...

    async def generate(self, request: GenerateRequest) -> Stream:
        self.requests.append(request)
        return ScriptedStream(self)

    async def close(self) -> None: ...


class ScriptedStream(Stream):
    def __init__(self, backend: Scripted) -> None:
        self._backend = backend
        self._events = iter(backend.events)

    async def __anext__(self) -> Event:
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            return event
        raise StopAsyncIteration

    def cancel(self) -> None: ...

    def close(self) -> None:
        self._backend.closed += 1


async def test_queue_full(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), queue_depth=0) as server:
        first, second = await server.connect(), await server.connect()
        await first.send(ask())
        await until(lambda: gate.waiting == 1)
        await second.send(ask())
        assert await second.line() == error("queue_full", "queue full", "q")
        gate.open(2)
        assert await first.line() + await first.line() == TOKEN + DONE
        gate.open(2)
        await second.send(ask())
        assert await second.line() + await second.line() == TOKEN + DONE


async def test_admission_closed_closes_the_connection(path: Path) -> None:
    async with serving(path) as server:
        server.admission.close()
        client = await server.connect()
        await client.send(ask(), ask())
        assert await client.rest() == error("backend_unavailable", "admission closed", "q")


async def test_no_backend(path: Path) -> None:
    mock = Mock(is_ready=False)
    async with serving(path, mock) as server:
        client = await server.connect()
        await client.send(ask())
        assert await client.line() == error("backend_unavailable", "no backend available", "q")
        mock.is_ready = True
        await client.send(ask())
        assert await client.line() == TOKEN


BACKEND_ERRORS = [
    (InvalidRequest("grammar does not parse"), "invalid_request", "grammar does not parse", False),
    (NotReady(), "backend_unavailable", "backend not ready", True),
    (Unavailable("upstream is down"), "backend_unavailable", "upstream is down", True),
    (BackendInternal("decode failed"), "internal", "decode failed", True),
]


@pytest.mark.parametrize(("raised", "code", "message", "counts"), BACKEND_ERRORS)
async def test_errors_of_the_backend_before_the_stream(
    path: Path, raised: InferdError, code: str, message: str, counts: bool
) -> None:
    mock = Mock(error=raised)
    async with serving(path, mock) as server:
        client = await server.connect()
        for _ in range(3):
            await client.send(ask())
            assert await client.line() == error(code, message, "q")
        mock.error = None
        await client.send(ask())
        # Three counted failures open the breaker.
        refused = error("backend_unavailable", "no backend available", "q")
        assert await client.line() == (refused if counts else TOKEN)


async def test_a_stream_without_its_end(path: Path) -> None:
    async with serving(path, Mock(tape=("a", "b"), drop_after=1)) as server:
        client = await server.connect()
        for _ in range(3):
            await client.send(ask())
            assert (await client.frame())["content"] == "a"
            message = "backend ended stream without terminal frame"
            assert await client.line() == error("backend_unavailable", message, "q")
        await client.send(ask())
        assert await client.line() == error("backend_unavailable", "no backend available", "q")


async def test_an_error_in_the_stream_is_its_terminal_frame(path: Path) -> None:
    backend = Scripted(Frames(TOKEN), BackendInternal("the engine was re-made"))
    async with serving(path, backend) as server:
        client = await server.connect()
        await client.send(ask(), ask())
        client.finish_sending()
        answer = TOKEN + error("internal", "the engine was re-made", "q")
        assert await client.rest() == answer * 2
    assert backend.closed == 2


async def test_an_error_that_nobody_foresaw_says_nothing_of_itself(path: Path) -> None:
    activity = log.setup("trace", path.parent, stderr=False)
    async with serving(path, Scripted(ZeroDivisionError("the user's words"))) as server:
        client = await server.connect()
        await client.send(ask())
        client.finish_sending()
        assert await client.rest() == error("internal", "internal error; the daemon's log says more", "q")
    activity.close()
    said = (path.parent / log.FILE_NAME).read_text()
    assert "ZeroDivisionError at test_session.py:" in said
    assert "the user's words" not in said


# Answers.


async def test_frames_of_the_backend_go_out_as_they_are(path: Path) -> None:
    done = Done("stop", Usage(9, 2, 4), Timings(12.3456, 30.0, 14.0, 66.66666), b"H\\u0000i")
    backend = Scripted(Frames(b"made elsewhere\n"), Frames(b"and here\n"), done)
    async with serving(path, backend) as server:
        client = await server.connect()
        await client.send(ask())
        assert await client.line() + await client.line() == b"made elsewhere\nand here\n"
        line = await client.line()
        assert line.startswith(
            b'{"type":"done","id":"q","content":"H\\u0000i","usage":{"prompt_tokens":9,"completion_tokens":2,'
            b'"cached_tokens":4},"stop_reason":"end","backend":"llamacpp","model":"tiny",'
            b'"timings":{"queue_ms":'
        )
        timings = json.loads(line)["timings"]
        assert list(timings) == ["queue_ms", "prefill_ms", "decode_ms", "ttft_ms", "tokens_per_second"]
        assert (timings["prefill_ms"], timings["tokens_per_second"]) == (12.346, 66.667)
        (request,) = backend.requests
        assert request.frame is not None
        assert request.frame.prefix + b"Hel" + request.frame.suffix == (
            b'{"type":"token","id":"q","content":"Hel"}\n'
        )


async def test_every_text_and_the_whole_content_are_escaped(path: Path) -> None:
    tape = ['say "hi"\n', "\x00\x1f\\", "é漢🌍", "\x7f"]
    async with serving(path, Mock(tape=tape)) as server:
        client = await server.connect()
        await client.send(ask('"\\\n🌍'))
        client.finish_sending()
        frames = [json.loads(line) for line in (await client.rest()).split(b"\n")[:-1]]
        assert [frame["content"] for frame in frames] == [*tape, "".join(tape)]
        assert {frame["id"] for frame in frames} == {'"\\\n🌍'}


async def test_stream_false_sends_the_terminal_frame_alone(path: Path) -> None:
    async with serving(path, Mock(tape=("mock-", "response"))) as server:
        client = await server.connect()
        await client.send(ask(stream=False))
        client.finish_sending()
        assert await client.rest() == DONE.replace(b'"completion_tokens":1', b'"completion_tokens":2')


async def test_max_tokens(path: Path) -> None:
    async with serving(path, Mock(tape=("a", "b", "c"))) as server:
        client = await server.connect()
        for most, content, reason in ((0, "", "length"), (2, "ab", "length"), (3, "abc", "end")):
            await client.send(ask(max_tokens=most, stream=False))
            frame = await client.frame()
            assert (frame["content"], frame["stop_reason"]) == (content, reason)
            assert frame["usage"] == {"prompt_tokens": 0, "completion_tokens": most}


async def test_ready_frames_are_not_held_back(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(tape=("a", "b"), pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        for content in ("a", "b"):
            gate.open()
            assert (await client.frame())["content"] == content
        gate.open()
        assert (await client.frame())["type"] == "done"


# Leaving.


async def test_a_client_that_ends_both_sides_after_an_error_still_gets_it(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(b"nonsense\n" + b"x" * 100_000)
        client.finish_sending()
        await until(lambda: not server.service.sessions)
        assert (await client.rest()).count(b"\n") == 1


@pytest.mark.parametrize("state", ["running", "queued", "with more lines waiting", "after a half-close"])
async def test_a_client_that_closes_its_socket_cancels_its_request(path: Path, state: str) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        other, client = await server.connect(), await server.connect()
        if state == "queued":
            await other.send(ask())
            await until(lambda: gate.waiting == 1)
        await client.send(ask())
        if state == "with more lines waiting":
            await until(lambda: gate.waiting == 1)
            await client.send(ask(), ask())
        if state == "after a half-close":
            client.finish_sending()
        await until(lambda: server.admission.waiting == 1 if state == "queued" else gate.waiting == 1)
        client.close()
        if state == "queued":
            await until(lambda: server.admission.waiting == 0)
            gate.open(2)
            assert await other.line() + await other.line() == TOKEN + DONE
        else:
            await until(lambda: server.admission.running == 0)
            assert gate.waiting == 0
        await until(lambda: len(server.service.sessions) == 1)


async def test_a_half_close_is_no_cancellation(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        client.finish_sending()
        await until(lambda: gate.waiting == 1)
        await asyncio.sleep(0.01)
        gate.open(2)
        assert await client.rest() == TOKEN + DONE


async def test_a_reset_on_tcp_cancels(short_dir: Path) -> None:
    gate = Gate()
    async with serving("127.0.0.1:0", Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await until(lambda: server.admission.running == 0)


async def test_a_close_on_tcp_cancels_with_the_first_failed_write() -> None:
    gate = Gate()
    async with serving("127.0.0.1:0", Mock(tape=["x"] * 1000, pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        client.close()
        while server.admission.running:
            gate.open()
            await asyncio.sleep(0.001)


async def test_a_half_close_on_tcp_is_no_cancellation() -> None:
    gate = Gate()
    async with serving("127.0.0.1:0", Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        client.finish_sending()
        await until(lambda: gate.waiting == 1)
        gate.open(2)
        assert await client.rest() == TOKEN + DONE


async def test_nothing_is_written_after_a_cancellation(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: gate.waiting == 1)
        (session,) = server.service.sessions
        written: list[bytes] = []
        session._conn.write = written.append  # type: ignore[method-assign]
        client.close()
        await until(lambda: not server.service.sessions)
        assert written == []


# Readers that do not read.


async def fill(client: Client, gate: Gate, server: Any) -> None:
    """Lets a request write until the client's unread bytes stop it."""
    (session,) = (s for s in server.service.sessions if s._stream is not None)
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
        gate.open(10)
        await asyncio.sleep(0.01)
        (stream,) = big.open_streams
        sent = stream._sent
        assert sent < 400
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
    mock = Mock(tape=["x" * 20_000] * 400)
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
    monkeypatch.setattr(connection, "HIGH_WATER_BYTES", 1 << 30)  # the answer never stops the request
    async with serving(path, Mock(tape=["x" * 400_000]), write_timeout_secs=0.05) as server:
        slow = await server.connect()
        await slow.send(ask(stream=False))
        slow.finish_sending()
        await until(lambda: len(server.service.sessions) == 1)
        await until(lambda: not server.service.sessions)


# The end after an error.


async def test_the_error_frame_arrives_though_the_client_goes_on_sending() -> None:
    async with serving("127.0.0.1:0") as server:
        client = await server.connect()
        await client.send(b"nonsense\n" + b"x" * 300_000)
        frame = await client.frame()
        assert frame["code"] == "invalid_request"
        assert await client.receive() == b""  # the write side is shut down, not reset
        await client.send(b"x" * 100_000)
        client.finish_sending()
        await until(lambda: not server.service.sessions)


async def test_a_client_that_never_stops_sending_is_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECS", 0.05)
    async with serving(path) as server:
        client = await server.connect()
        await client.send(b"nonsense\n")

        async def send_for_ever() -> None:
            while True:
                await client.send(b"x" * 1000)
                await asyncio.sleep(0)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await send_for_ever()


# Deadlines.


async def test_a_waiting_request_is_refused_at_its_deadline(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        first, second = await server.connect(), await server.connect()
        await first.send(ask())
        await until(lambda: gate.waiting == 1)
        await second.send(ask(deadline_ms=10))
        expected = error("deadline_exceeded", "the deadline passed while the request waited", "q")
        assert await second.line() == expected
        gate.open(4)
        await second.send(ask())
        assert await second.line() + await second.line() == TOKEN + DONE


async def test_a_running_request_is_cancelled_at_its_deadline(path: Path) -> None:
    gate = Gate()
    mock = Mock(tape=("a", "b"), pace=gate)
    async with serving(path, mock) as server:
        client = await server.connect()
        await client.send(ask(deadline_ms=20))
        gate.open()
        assert (await client.frame())["content"] == "a"
        frame = await client.frame()
        assert (frame["content"], frame["stop_reason"]) == ("a", "cancelled")


async def test_a_deadline_of_an_earlier_request_does_not_end_the_next(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        gate.open(2)
        await client.send(ask(deadline_ms=30), ask())
        assert await client.line() + await client.line() == TOKEN + DONE
        await asyncio.sleep(0.06)
        gate.open(2)
        assert await client.line() + await client.line() == TOKEN + DONE


# Priority, as the session passes it on.


async def test_interactive_requests_pass_batch_requests(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        first, batch, interactive = [await server.connect() for _ in range(3)]
        await first.send(ask())
        await until(lambda: gate.waiting == 1)
        await batch.send(ask(priority="batch"))
        await until(lambda: server.admission.waiting == 1)
        await interactive.send(ask())
        await until(lambda: server.admission.waiting == 2)
        gate.open(4)
        assert await interactive.line() + await interactive.line() == TOKEN + DONE
        assert server.admission.running == 1
        gate.open(2)
        assert await batch.line() + await batch.line() == TOKEN + DONE


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
    "key of the wrong type": b'{"type":"auth","key":7}\n',
    "another type": json.dumps({"type": "hello", "key": KEY}).encode() + b"\n",
    "a request": json.dumps(ask()).encode() + b"\n",
    "no JSON": b"GET / HTTP/1.1\r\n",
    "a blank line": b"\n",
    "invalid UTF-8": b'{"type":"auth","key":"\xff"}\n',
    "over 4 KiB": json.dumps({"x": "x" * 4096, **AUTH}).encode() + b"\n",
    "over 4 KiB without end": b"x" * 4097,
}


@pytest.mark.parametrize("name", REJECTED)
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
    async with serving("127.0.0.1:0", api_key=KEY) as server:
        client = await server.connect()
        await client.send(b'{"type":')
        assert await client.rest() == b""


async def test_after_the_key_silence_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "TIMEOUT_SECS", 0.03)
    async with serving("127.0.0.1:0", api_key=KEY) as server:
        client = await server.connect()
        await client.send(AUTH)
        await asyncio.sleep(0.06)
        await client.send(ask())
        assert await client.line() == TOKEN


@pytest.mark.parametrize("address", ["unix", "tcp"])
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


# Being ended from above.


async def test_an_interrupt_ends_running_and_waiting_requests_as_cancelled(path: Path) -> None:
    gate = Gate()
    mock = Mock(tape=("a", "b"), pace=gate)
    async with serving(path, mock) as server:
        running, waiting = await server.connect(), await server.connect()
        await running.send(ask())
        gate.open()
        assert (await running.frame())["content"] == "a"
        await until(lambda: gate.waiting == 1)
        await waiting.send(ask())
        await until(lambda: server.admission.waiting == 1)
        server.admission.close()
        server.service.interrupt()
        cancelled = await waiting.frame()
        assert (cancelled["content"], cancelled["stop_reason"]) == ("", "cancelled")
        cancelled = await running.frame()
        assert (cancelled["content"], cancelled["stop_reason"]) == ("a", "cancelled")
        assert await asyncio.wait_for(server.admission.idle(), 5) is None


async def test_closing_the_listener_flushes_what_was_written(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: bool(server.service.sessions))
        assert await client.line() == TOKEN
        await server.listener.close(grace=5)
        assert await client.rest() == DONE
