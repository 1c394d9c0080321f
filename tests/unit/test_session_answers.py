"""The answers of each stage of a request, over a real socket, on both event loops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd import log
from inferd.engine.backend import Backend, Capabilities, Stream
from inferd.engine.events import Done, Event, Frames, Timings, Usage
from inferd.engine.mock import Mock
from inferd.engine.requests import GenerateRequest
from inferd.errors import BackendInternal, InferdError, InvalidRequest, NotReady, Unavailable
from inferd.serve.surfaces import generation
from tests.cases import cases
from tests.in_process import DONE, TOKEN, Gate, ask, error, serving, until

pytestmark = pytest.mark.both_loops


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


# The answers of the stages.


class Scripted(Backend):
    """Sends its events in order; it raises an exception among them."""

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
        return Capabilities(v2=True)

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


@cases("raised, code, message, counts", BACKEND_ERRORS)
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


async def test_an_unexpected_error_does_not_show_its_message(path: Path) -> None:
    activity = log.setup("trace", path.parent, stderr=False)
    async with serving(path, Scripted(ZeroDivisionError("the user's words"))) as server:
        client = await server.connect()
        await client.send(ask())
        client.finish_sending()
        assert await client.rest() == error("internal", "internal error; the daemon's log says more", "q")
    activity.close()
    said = (path.parent / log.FILE_NAME).read_text()
    assert "ZeroDivisionError at test_session_answers.py:" in said
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


Deadlines = list[tuple[Callable[[], object], asyncio.TimerHandle]]


def deadlines_of(monkeypatch: pytest.MonkeyPatch) -> Deadlines:
    """The callback and timer of each deadline more than 300 s from now. No other timer is as late."""
    loop, found = asyncio.get_running_loop(), Deadlines()
    call_at = loop.call_at

    def note(when: float, ring: Callable[..., object], *args: Any, **options: Any) -> asyncio.TimerHandle:
        handle = call_at(when, ring, *args, **options)
        if when > loop.time() + 300:
            found.append((ring, handle))
        return handle

    monkeypatch.setattr(loop, "call_at", note)
    return found


async def test_a_waiting_request_is_told_its_place(path: Path) -> None:
    async with serving(path) as server:
        first, second = await server.connect(), await server.connect()
        with await server.admission.of("mock").admit("another"):
            await first.send(ask())
            await until(lambda: server.admission.waiting == 1)
            await second.send(ask(progress=True, model="mock"))
            told = [await second.frame()]
        assert (await first.frame())["type"] == "token"  # it has not asked for its place
        while (frame := await second.frame())["type"] == "progress":
            told.append(frame)
        assert [(frame["phase"], frame.get("position")) for frame in told] == [
            ("queued", 2),
            ("queued", 1),
            ("started", None),
        ]
        assert told[0]["model"] == "mock"


async def test_a_running_request_is_cancelled_at_its_deadline(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, deadlines = Gate(), deadlines_of(monkeypatch)
    mock = Mock(tape=("a", "b"), pace=gate)
    async with serving(path, mock) as server:
        client = await server.connect()
        await client.send(ask(deadline_ms=600_000))
        gate.open()
        assert (await client.frame())["content"] == "a"
        await until(lambda: gate.waiting == 1)
        (running,) = [ring for ring, handle in deadlines if not handle.cancelled()]
        running()
        frame = await client.frame()
        assert (frame["content"], frame["stop_reason"]) == ("a", "cancelled")


async def test_a_deadline_of_an_earlier_request_does_not_end_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, deadlines = Gate(), deadlines_of(monkeypatch)
    async with serving(path, Mock(pace=gate)) as server:
        client = await server.connect()
        gate.open(2)
        await client.send(ask(deadline_ms=600_000), ask())
        assert await client.line() + await client.line() == TOKEN + DONE
        await until(lambda: gate.waiting == 1)
        assert deadlines
        assert all(handle.cancelled() for _, handle in deadlines)
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


# Ended by the daemon.


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
        assert await asyncio.wait_for(server.admission.idle(), 100) is None


async def test_closing_the_listener_flushes_written_frames(path: Path) -> None:
    async with serving(path) as server:
        client = await server.connect()
        await client.send(ask())
        await until(lambda: bool(server.service.sessions))
        assert await client.line() == TOKEN
        await server.listener.close(grace=5)
        assert await client.rest() == DONE


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_an_end_is_ended(
    path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(generation, "MAX_ANSWER_BYTES", 100)
    async with serving(path, Mock(tape=["0123456789"] * 11)) as server:
        client = await server.connect()
        await client.send(ask(stream=stream))
        while (frame := await client.frame())["type"] == "token":
            continue
        assert frame["code"] == "backend_unavailable"
        assert frame["message"] == "the answer has more than 100 bytes; it was ended"
