"""Nothing above 256 KB is parsed, validated or decoded on the event loop's thread."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.requests import FrameTemplate, GenerateRequest
from inferd.serve import session
from inferd.serve.connection import LARGE_BYTES
from inferd.serve.surfaces.v2 import BlockSurface
from inferd.wire import long_texts, v2
from tests.in_process import Client, serving


class Watched(BlockSurface):
    """Records the thread of each operation: the event loop's or another."""

    def __init__(self) -> None:
        self._loop_thread = threading.get_ident()
        self.on_loop: dict[str, bool] = {}

    def _note(self, step: str) -> None:
        self.on_loop[step] = threading.get_ident() == self._loop_thread

    def parse(self, line: bytes, /) -> v2.Request:  # type: ignore[override]
        self._note("parse")
        return super().parse(line)

    def validate(self, request: v2.Request) -> None:  # type: ignore[override]
        self._note("validate")
        super().validate(request)

    def engine_request(
        self, request: v2.Request, template: FrameTemplate | None, scope: str = ""
    ) -> GenerateRequest:
        self._note("engine_request")
        return super().engine_request(request, template, scope)


def ask(*blocks: dict[str, Any], **more: Any) -> bytes:
    request = {"id": "q", "messages": [{"role": "user", "content": list(blocks)}], **more}
    return json.dumps(request).encode() + b"\n"


async def done(client: Client) -> bool:
    while (frame := await client.frame())["type"] == "frame":
        continue
    return bool(frame["type"] == "done")


TEXT = {"type": "text", "text": "word " * (LARGE_BYTES // 5 + 1)}
NOTE = {"type": "text", "attachment_id": "t"}
SIZE = LARGE_BYTES + 1


@pytest.mark.parametrize(
    ("request_", "on_loop"),
    [
        (ask({"type": "text", "text": "hi"}), {"parse": True, "validate": True, "engine_request": True}),
        (ask(TEXT), {"parse": False, "validate": False, "engine_request": False}),
        (
            ask(NOTE, attachments=[{"kind": "text", "id": "t", "size": SIZE}]) + b"t" * SIZE,
            {"parse": True, "validate": False, "engine_request": False},
        ),
    ],
    ids=["a small request", "a large line", "a large attachment"],
)
async def test_large_work_is_done_in_a_thread(
    short_dir: Path, request_: bytes, on_loop: dict[str, bool]
) -> None:
    surface = Watched()
    async with serving(short_dir / "s", surface=surface, max_frame_bytes=2**24) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(request_)
            assert await done(client)
            assert surface.on_loop == on_loop


async def test_a_large_line_that_no_thread_can_read_gets_an_error(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with serving(short_dir / "s", surface=BlockSurface(), max_frame_bytes=2**24) as server:
        client = await server.connect()
        monkeypatch.setattr(session.asyncio, "to_thread", no_thread)
        await client.send(ask(TEXT))
        frame = await client.frame()
        monkeypatch.undo()
        assert (frame["code"], frame["message"]) == (
            "internal",
            "internal error; the daemon's log says more",
        )
        assert await client.rest() == b""
        assert server.service.memory.reserved == 0


async def test_a_large_line_holds_few_names(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "MAX_NAMES", 100)
    many = [{"type": "text", "text": "word"}] * 51
    async with serving(short_dir / "s", surface=BlockSurface(), max_frame_bytes=2**24) as server:
        client = await server.connect()
        await client.send(ask(*many))  # a line that is not large may
        assert await done(client)
        await client.send(ask(TEXT, *many))
        frame = await client.frame()
        assert frame["code"] == "invalid_request"
        assert frame["message"].endswith("holds more than 100 names")
        assert server.service.memory.reserved == 0


async def test_a_large_invalid_line_keeps_no_memory(short_dir: Path) -> None:
    async with serving(short_dir / "s", surface=BlockSurface(), max_frame_bytes=2**24) as server:
        client = await server.connect()
        await client.send(b" " * SIZE + b"{}\n")
        assert (await client.frame())["code"] == "invalid_request"
        assert server.service.memory.reserved == 0


async def test_a_long_text_of_wide_characters_is_taken(short_dir: Path) -> None:
    text = "é" * (1024 * 1024) + "x"
    data = b"a" + text.encode()
    attachment = {"kind": "text", "id": "t", "size": len(data)}
    async with serving(short_dir / "s", surface=BlockSurface()) as server:
        client = await server.connect()
        await client.send(ask(NOTE, attachments=[attachment]) + data)
        assert await done(client)
