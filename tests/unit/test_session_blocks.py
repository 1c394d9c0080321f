"""v2 through a session: attachments after the line, capabilities, and frames of every kind."""

from __future__ import annotations

import asyncio
import errno
import json
import random
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.backend import Capabilities, Stream
from inferd.engine.events import Thinking, ToolUse
from inferd.engine.mock import Mock
from inferd.engine.requests import GenerateRequest, Media, ToolCall
from inferd.errors import Unavailable
from inferd.serve import memory
from inferd.serve.pool import Route
from inferd.serve.surfaces.v2 import BlockSurface
from inferd.wire import v2
from tests.cases import cases
from tests.in_process import Client, Gate, serving, until

pytestmark = pytest.mark.both_loops

V2 = BlockSurface()
TOKEN = {"type": "frame", "id": "q", "block": {"type": "text", "delta": "mock-response"}}
DONE = {
    "type": "done", "id": "q", "usage": {"input_tokens": 0, "output_tokens": 1}, "stop_reason": "end_turn",
    "backend": "mock", "model": "mock",
}  # fmt: skip


class Listening(Mock):
    """Records its requests, with a copy of their media."""

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.heard: list[object] = []

    async def generate(self, request: GenerateRequest) -> Stream:
        for message in request.messages:
            parts = (message.content,) if isinstance(message.content, str) else message.content
            self.heard += [bytes(part.data) if isinstance(part, Media) else part for part in parts]
        return await super().generate(request)


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


def ask(*blocks: object, **fields: object) -> bytes:
    content = list(blocks) or [{"type": "text", "text": "hi"}]
    request = {"id": "q", "messages": [{"role": "user", "content": content}], **fields}
    return json.dumps(request).encode() + b"\n"


def show(*sizes: int, **fields: object) -> bytes:
    """A request with images of these sizes after its line."""
    blocks = [{"type": "image", "attachment_id": str(n)} for n in range(len(sizes))]
    files = [
        {"kind": "image", "mime": "image/png", "id": str(n), "size": size} for n, size in enumerate(sizes)
    ]
    return ask(*blocks, attachments=files, **fields)


async def expect(client: Client, *frames: dict[str, Any]) -> None:
    for frame in frames:
        assert await client.frame() == frame


def refusal(code: str, message: str) -> dict[str, str]:
    return {"type": "error", "id": "q", "code": code, "message": message}


async def test_text_in_text_out(path: Path) -> None:
    async with serving(path, surface=V2) as server:
        client = await server.connect()
        await client.send(ask(), ask(stream=False))
        await expect(client, TOKEN, DONE, TOKEN, DONE)


async def test_frames_of_every_kind(path: Path) -> None:
    call = ToolUse(ToolCall("c1", "f", '{"k":1}'))
    async with serving(path, Mock(tape=[Thinking("hm"), "so", call]), surface=V2) as server:
        client = await server.connect()
        await client.send(ask())
        await expect(
            client,
            {"type": "frame", "id": "q", "block": {"type": "thinking", "delta": "hm"}},
            {"type": "frame", "id": "q", "block": {"type": "text", "delta": "so"}},
            {
                "type": "frame",
                "id": "q",
                "block": {"type": "tool_use", "tool_call_id": "c1", "name": "f", "input": {"k": 1}},
            },
            {**DONE, "usage": {"input_tokens": 0, "output_tokens": 3}, "stop_reason": "tool_use"},
        )


# Attachments.

NOTE = {"kind": "text", "id": "t", "size": 9}


async def test_bytes_after_the_line_arrive_unchanged(path: Path) -> None:
    backend = Listening()
    noise = random.Random(1).randbytes
    files = [noise(10), b"\n" * 300, noise(200_000), b'{"id":"x"}\n']
    async with serving(path, backend, surface=V2) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(show(*map(len, files)) + b"".join(files) + ask())
            await expect(client, TOKEN, DONE, TOKEN, DONE)
    assert backend.heard == [*files, "hi"] * 2


async def test_inline_and_raw_attachments_mix(path: Path) -> None:
    backend = Listening()
    files = [
        {"kind": "text", "id": "0", "size": 3},
        {"kind": "text", "id": "1", "bytes": "aW5saW5l"},
        {"kind": "text", "id": "2", "size": 0},
        {"kind": "text", "id": "3", "size": 2},
    ]
    blocks = [{"type": "text", "attachment_id": str(n)} for n in (3, 2, 1, 0)]
    async with serving(path, backend, surface=V2) as server:
        client = await server.connect()
        await client.send(ask(*blocks, attachments=files) + b"a\nb" + "é".encode())
        await expect(client, TOKEN, DONE)
    assert backend.heard == ["é\n\ninline\na\nb"]


async def test_a_request_with_bytes_cut_at_every_point(path: Path) -> None:
    backend = Listening()
    data = show(5, 1) + b"\n\0a\r\n" + b"\xff" + ask()
    async with serving(path, backend, surface=V2) as server:
        client = await server.connect()
        for cut in range(1, len(data)):
            await client.send(data[:cut])
            await asyncio.sleep(0)
            await client.send(data[cut:])
            await expect(client, TOKEN, DONE, TOKEN, DONE)
            assert backend.heard == [b"\n\0a\r\n", b"\xff", "hi"]
            backend.heard.clear()


@cases(
    "line, reason",
    [
        (
            ask(messages=[], attachments=[{"kind": "text", "id": "t", "size": 9}]),
            "messages must not be empty",
        ),
        (ask(attachments=[{"kind": "odd", "size": 9}]), "attachments contain an unknown kind"),
        (ask(attachments=[{"kind": "text", "id": "t", "size": 9}], temperature=-1), "temperature must be"),
    ],
)
async def test_the_bytes_of_a_refused_request_are_no_request(path: Path, line: bytes, reason: str) -> None:
    async with serving(path, surface=V2) as server:
        client = await server.connect()
        await client.send(line + b"\n{}\n{}\n[]" + ask())
        assert (await client.frame())["message"].startswith(f"invalid request: {reason}")
        await expect(client, TOKEN, DONE)


async def test_video_bytes_are_skipped_too(path: Path) -> None:
    async with serving(path, surface=V2) as server:
        client = await server.connect()
        await client.send(ask(attachments=[{"kind": "video", "id": "v", "size": 3}]) + b"\n\n\n" + ask())
        assert (await client.frame())["code"] == "attachment_unsupported"
        await expect(client, TOKEN, DONE)


@cases(
    "sizes, message",
    [
        ([1000, 1001], "attachments[1] exceeds 1000 byte cap"),
        ([2**80], "attachments[0] exceeds 1000 byte cap"),
    ],
)
async def test_a_size_over_the_cap_is_refused_before_its_bytes(
    path: Path, sizes: list[int], message: str
) -> None:
    async with serving(path, surface=V2, max_attachment_bytes=1000) as server:
        client = await server.connect()
        await client.send(show(*sizes))
        await expect(client, refusal("frame_too_large", message))
        assert await client.rest() == b""


async def test_the_caps_count_together(path: Path) -> None:
    half = 64 * 1024 * 1024
    async with serving(path, surface=V2) as server:
        client = await server.connect()
        await client.send(show(half, half, 1))
        await expect(client, refusal("frame_too_large", "attachments exceed 134217728 byte cap"))
        assert await client.rest() == b""


@cases("sent", [0, 1, 99])
async def test_the_end_of_the_input_within_the_bytes(path: Path, sent: int) -> None:
    async with serving(path, surface=V2) as server:
        client = await server.connect()
        await client.send(show(100) + b"\n" * sent)
        client.finish_sending()
        message = "decode: the input ends within the 100 bytes of the attachments"
        await expect(client, refusal("invalid_request", message))
        assert await client.rest() == b""


async def test_a_client_that_leaves_within_the_bytes_leaks_nothing(path: Path) -> None:
    async with serving(path, surface=V2) as server:
        client = await server.connect()
        await client.send(show(1000) + b"x")
        await until(lambda: any(s._context is not None for s in server.service.sessions))
        client.close()
        await until(lambda: not server.service.sessions)


async def test_a_line_that_only_mentions_size_does_not_wait_for_bytes(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), surface=V2) as server:
        client = await server.connect()
        await client.send(ask(size=1), ask(size=2))
        client.finish_sending()
        for _ in range(2):
            await until(lambda: gate.waiting == 1)
            gate.open(2)
            await expect(client, TOKEN, DONE)
        assert await client.rest() == b""


async def test_a_request_whose_bytes_wait_for_a_running_one(path: Path) -> None:
    gate = Gate()
    backend = Listening(pace=gate)
    big = b"\0" * 300_000  # no newline in it, and far beyond the cap of a line
    async with serving(path, backend, surface=V2) as server:
        client = await server.connect()
        sending = asyncio.ensure_future(client.send(ask(), show(len(big)) + big))
        await until(lambda: gate.waiting == 1)
        gate.open(2)
        await expect(client, TOKEN, DONE)
        await sending
        await until(lambda: gate.waiting == 1)
        gate.open(2)
        await expect(client, TOKEN, DONE)
    assert backend.heard == ["hi", big]


# Failures with unread bytes.


class NoMapping:
    """An ``mmap`` module on a system without memory."""

    MAP_PRIVATE = MAP_ANONYMOUS = 0

    def mmap(self, *_: object) -> object:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")


async def test_no_memory_for_the_bytes_is_an_error_frame_and_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Listening()
    hidden = (
        ask({"type": "text", "text": "read as a request"}) * 1000
    )  # too much for memory without a mapping
    async with serving(path, backend, surface=V2) as server:
        monkeypatch.setattr(memory, "mmap", NoMapping())
        client = await server.connect()
        await client.send(show(len(hidden)) + hidden)
        message = "no memory is left for a request of this size; send it again later"
        await expect(client, refusal("queue_full", message))
        assert await client.rest() == b""
    assert backend.heard == []


async def test_the_deadline_counts_from_the_line_and_ends_the_wait_for_attachments(path: Path) -> None:
    async with serving(path, surface=V2) as server:
        client = await server.connect()
        await client.send(show(1000, deadline_ms=30) + b"x")
        message = "the deadline passed before all attachments had come"
        await expect(client, refusal("deadline_exceeded", message))
        assert await client.rest() == b""


class Failing(BlockSurface):
    """Fails with an unexpected exception, before or while the bytes are assigned."""

    def __init__(self, step: str) -> None:
        self.step = step

    def raw_size(self, request: v2.Request, max_attachment_bytes: int) -> int:
        if self.step == "size":
            raise ZeroDivisionError
        return super().raw_size(request, max_attachment_bytes)

    def assign(self, request: v2.Request, raw: memoryview) -> None:
        raise ZeroDivisionError


@cases("step", ["size", "assign"])
async def test_an_unexpected_failure_before_the_request_is_complete_closes(path: Path, step: str) -> None:
    async with serving(path, surface=Failing(step)) as server:
        client = await server.connect()
        await client.send(show(3) + b"abc" + ask())
        await expect(client, refusal("internal", "internal error; the daemon's log says more"))
        assert await client.rest() == b""


# The capabilities of backends.

TOOL = {"name": "f", "description": "", "input_schema": {}}
SOUND = [{"kind": "audio", "id": "a", "sample_rate": 16000, "bytes": "AACAPw=="}]
HEAR = {"type": "audio", "attachment_id": "a"}


@cases(
    "able, request_, code, message",
    [
        (Capabilities(embed=True), ask(), "internal", 'backend "m" does not advertise v2 capability'),
        (
            Capabilities(v2=True),
            ask(tools=[TOOL]),
            "internal",
            'backend "m" does not advertise tools capability',
        ),
        (
            Capabilities(v2=True, audio=True),
            show(1) + b"x",
            "attachment_unsupported",
            'backend "m" takes no image attachments',
        ),
        (
            Capabilities(v2=True, vision=True),
            ask(HEAR, attachments=SOUND),
            "attachment_unsupported",
            'backend "m" takes no audio attachments',
        ),
    ],
)
async def test_unsupported_requests_are_refused(
    path: Path, able: Capabilities, request_: bytes, code: str, message: str
) -> None:
    async with serving(path, Mock("m", capabilities=able), surface=V2) as server:
        client = await server.connect()
        for _ in range(5):  # it never counts against the backend
            await client.send(request_)
            await expect(client, refusal(code, message))
        if able.v2:
            await client.send(ask())
            await expect(client, TOKEN, DONE)


async def test_the_first_capable_backend_serves(path: Path) -> None:
    plain = Mock("plain", tape=["plain"], capabilities=Capabilities(v2=True))
    seeing = Mock("seeing", tape=["seeing"], capabilities=Capabilities(v2=True, vision=True))
    async with serving(
        path, Mock("e", capabilities=Capabilities(embed=True)), plain, seeing, surface=V2
    ) as server:
        client = await server.connect()
        for request, name in ((ask(), "plain"), (show(1) + b"x", "seeing")):
            await client.send(request)
            assert (await client.frame())["block"]["delta"] == name
            await client.frame()


async def test_a_retry_brings_the_texts_and_frees_them_with_the_first_token(path: Path) -> None:
    gate = Gate()
    bad, good = Listening(name="bad", error=Unavailable("down")), Listening(pace=gate)
    routes = {bad: Route(serves="m"), good: Route(serves="m", remote=True, limit=1)}
    async with serving(path, bad, good, surface=V2, routes=routes) as server:
        client = await server.connect()
        await client.send(ask({"type": "text", "attachment_id": "t"}, attachments=[NOTE]) + b"read this")
        await until(lambda: gate.waiting == 1)
        assert bad.heard == good.heard == ["read this"]
        gate.open()
        await expect(client, TOKEN)
        (context,) = (session._context for session in server.service.sessions)
        assert context is not None
        assert context.engine_request is context.request.attachments[0].data is None
        gate.open()
        await expect(client, DONE)


async def test_an_interrupt_is_a_done(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), surface=V2) as server:
        client = await server.connect()
        await client.send(ask(stream=False))
        await until(lambda: gate.waiting == 1)
        server.service.interrupt()
        frame = await client.frame()
        assert (frame["type"], frame["stop_reason"]) == ("done", "cancelled")
