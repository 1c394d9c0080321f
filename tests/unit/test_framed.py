"""The framed wire on a real socket: its detection, its errors, and attachments in blobs."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.backend import Capabilities, Stream
from inferd.engine.mock import Mock
from inferd.engine.requests import GenerateRequest
from inferd.errors import InferdError, SchemaViolation
from inferd.serve.surface import Surface
from inferd.serve.surfaces.v1 import TextSurface
from inferd.serve.surfaces.v2 import BlockSurface, FramedSurface
from inferd.serve.surfaces.vectors import EmbedSurface
from inferd.wire import framed
from tests.cases import cases
from tests.fuzz.test_frames import frame, read_head
from tests.in_process import Client, Gate, ask, error, serving, until

pytestmark = pytest.mark.both_loops

TOKEN = {"type": "frame", "id": "q", "block": {"type": "text", "delta": "mock-response"}}
DONE = {
    "type": "done", "id": "q", "usage": {"input_tokens": 0, "output_tokens": 1}, "stop_reason": "end_turn",
    "backend": "mock", "model": "mock",
}  # fmt: skip
TEXT_LINE = b'{"id":"q","messages":[{"role":"user","content":"hi"}],"stream":false}\n'
BLOCKS_LINE = b'{"id":"q","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}\n'

# Its first three bytes are those of a byte order mark.
BOM_LENGTH = 0x6F + (0x3B << 7) + (0x3F << 14) + (1 << 21)

SOCKETS = pytest.mark.parametrize("surface", [TextSurface(), BlockSurface(), FramedSurface()])


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


def request(text: str = "hi", **more: Any) -> bytes:
    content = [{"type": "text", "text": text}]
    body = {"wire_version": 1, "id": "q", "messages": [{"role": "user", "content": content}], **more}
    return frame(json.dumps({key: value for key, value in body.items() if value is not None}).encode())


def blob(name: str, data: bytes, size: int | None = None) -> bytes:
    told = len(data) if size is None else size
    head = {"type": "attachment_blob", "attachment_id": name, "len": told}
    return frame(json.dumps(head).encode()) + frame(data, framed.BLOB)


def refusal(code: str, message: str, request_id: str = "q") -> dict[str, Any]:
    return {"type": "error", "id": request_id, "code": code, "message": message}


class Frames:
    """Reads frames of JSON from a client's socket."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._held = b""

    async def next(self) -> dict[str, Any] | None:
        """``None`` at the end of the stream."""
        while True:
            head, length = read_head(self._held)
            if isinstance(head, tuple) and len(self._held) >= length + head[1]:
                assert head[0] == framed.JSON
                payload = self._held[length : length + head[1]]
                self._held = self._held[length + head[1] :]
                found: dict[str, Any] = json.loads(payload)
                return found
            chunk = await self._client.receive()
            if not chunk:
                assert self._held == b""
                return None
            self._held += chunk

    async def answer(self) -> list[dict[str, Any]]:
        """The frames up to a terminal one."""
        found = []
        while (each := await self.next()) is not None:
            found.append(each)
            if each["type"] != "frame":
                break
        return found


class Listening(Mock):
    """Supports images and audio, and records its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[GenerateRequest] = []

    def capabilities(self) -> Capabilities:
        return Capabilities(v2=True, vision=True, audio=True, tools=True)

    async def generate(self, request: GenerateRequest) -> Stream:
        self.heard.append(request)
        return await super().generate(request)


# Detection of the wire.


@SOCKETS
async def test_every_generation_socket_takes_frames(path: Path, surface: Surface[Any]) -> None:
    async with serving(path, surface=surface) as server:
        client = await server.connect()
        frames = Frames(client)
        await client.send(request(), request())
        assert await frames.answer() == [TOKEN, DONE]
        assert await frames.answer() == [TOKEN, DONE]
        await client.send(request(messages=[]))
        assert await frames.answer() == [
            refusal("invalid_request", "invalid request: messages must not be empty")
        ]
        await client.send(request())
        assert await frames.answer() == [TOKEN, DONE]
        assert server.service.metrics.surfaces["framed"].done == 3


@SOCKETS
async def test_an_empty_first_line_is_answered_before_more_comes(path: Path, surface: Surface[Any]) -> None:
    async with serving(path, surface=surface) as server:
        client = await server.connect()
        await client.send(b"\n")
        assert (await client.frame())["code"] == "invalid_request"


@SOCKETS
@cases("bom", [b"", b"\xef\xbb\xbf"])
async def test_every_generation_socket_takes_lines(path: Path, surface: Surface[Any], bom: bytes) -> None:
    line = TEXT_LINE if isinstance(surface, TextSurface) else BLOCKS_LINE
    async with serving(path, surface=surface) as server:
        client = await server.connect()
        await client.send(bom + line)
        while (found := await client.frame())["type"] == "frame":
            pass
        assert found["type"] == "done"
        assert server.service.metrics.surfaces[surface.lines.name].done == 1


@SOCKETS
@cases("size", [BOM_LENGTH, 123, 2, 128, 70_000])
async def test_a_frame_byte_by_byte_whatever_its_length_looks_like(
    path: Path, surface: Surface[Any], size: int
) -> None:
    async with serving(path, surface=surface) as server:
        client = await server.connect()
        data = frame(b"{}" if size == 2 else b'{"x":"' + b"a" * (size - 8) + b'"}')
        assert data.startswith(b"\xef\xbb\xbf") == (size == BOM_LENGTH)
        for byte in data[:8]:
            await client.send(bytes([byte]))
        await client.send(data[8:])
        (answer,) = await Frames(client).answer()
        assert answer["code"] == "wire_version_unsupported"


async def test_the_embed_socket_knows_lines_alone(path: Path) -> None:
    async with serving(path, Mock(), surface=EmbedSurface()) as server:
        client = await server.connect()
        await client.send(frame(b'{"id":"q","input":["a"]}') + b"\n")
        assert (await client.frame())["message"].startswith("decode: ")


@pytest.mark.parametrize("surface", [TextSurface(), BlockSurface()])
async def test_bytes_of_neither_form_are_answered_with_a_line(path: Path, surface: Surface[Any]) -> None:
    async with serving(path, surface=surface) as server:
        # An invalid head is answered at once, other bytes at the end of the line.
        for start in (b"\xff\xff\xff\xff\xff\xff", b"\x80\x07\x07", b"\xff\xff\xff\x7f\x01", b"\x07\x03\n"):
            client = await server.connect()
            await client.send(start)
            found = await client.frame()
            assert found["code"] == "invalid_request"
            assert found["message"].startswith("decode: ")
            assert await client.rest() == b""


NOT_FRAMES = {
    "a length without an end": (b"\xff\xff\xff\xff\xff", "malformed frame: length varint exceeded 5 bytes"),
    "an unknown kind": (b"\x05\x03hello", "malformed frame: unknown frame-type byte 0x03"),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", "malformed frame: unknown frame-type byte 0x45"),
    "a blob first": (frame(b"x", framed.BLOB), "malformed frame: expected a JSON frame"),
    "an end within the head": (b"\x80", "malformed frame: stream ended mid-frame"),
    "an end within the payload": (request()[:-1], "malformed frame: stream ended mid-frame"),
}


@cases("name", NOT_FRAMES)
async def test_a_malformed_frame_is_answered_in_a_frame(path: Path, name: str) -> None:
    data, message = NOT_FRAMES[name]
    async with serving(path, surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(data)
        client.finish_sending()
        frames = Frames(client)
        assert await frames.answer() == [refusal("invalid_request", message, "")]
        assert await frames.next() is None


async def test_the_length_is_checked_before_anything_is_read(path: Path) -> None:
    async with serving(path, surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(b"\x81\x80\x80\x20\x01")
        frames = Frames(client)
        assert await frames.answer() == [refusal("frame_too_large", "frame exceeds 67108864 byte cap", "")]
        assert await frames.next() is None


async def test_a_large_frame_is_reserved_before_it_is_read(path: Path) -> None:
    async with serving(path, surface=FramedSurface(), max_input_memory_bytes=1_000_000) as server:
        client = await server.connect()
        await client.send(request(text="x" * 900_000)[:10])
        frames = Frames(client)
        (answer,) = await frames.answer()
        assert answer["code"] == "frame_too_large"
        assert await frames.next() is None


# Requests.


@cases(
    "version, message",
    [
        (None, "the request has no wire_version: this daemon speaks wire_version 1"),
        (2, "unsupported wire_version 2: this daemon speaks wire_version 1"),
        (0, "unsupported wire_version 0: this daemon speaks wire_version 1"),
        (True, "unsupported wire_version: this daemon speaks wire_version 1"),
        ("1", "unsupported wire_version: this daemon speaks wire_version 1"),
    ],
)
async def test_another_version_is_refused_and_closes(path: Path, version: object, message: str) -> None:
    async with serving(path, surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(request(wire_version=version), request())
        frames = Frames(client)
        assert await frames.answer() == [refusal("wire_version_unsupported", message)]
        assert await frames.next() is None


async def test_invalid_json_closes_and_a_wrong_field_does_not(path: Path) -> None:
    async with serving(path, surface=FramedSurface()) as server:
        client = await server.connect()
        frames = Frames(client)
        await client.send(request(max_tokens="many"), request(), frame(b"{"), request())
        (first,) = await frames.answer()
        assert first["message"].startswith("decode: Expected `int")
        assert await frames.answer() == [TOKEN, DONE]
        (last,) = await frames.answer()
        assert last["message"].startswith("decode: ")
        assert await frames.next() is None


@cases(
    "more, message",
    [
        ({"tool_choice": "auto"}, "tool_choice requires a non-empty tools array"),
        (
            {
                "tool_choice": "none",
                "tools": [{"name": "f", "description": "", "input_schema": {"type": "object"}}],
                "response_format": {"type": "json_schema", "schema": {"type": "object"}},
            },
            "tool_choice and response_format exclude each other",
        ),
    ],
)
async def test_an_impossible_tool_choice(path: Path, more: dict[str, Any], message: str) -> None:
    async with serving(path, surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(request(**more))
        assert await Frames(client).answer() == [refusal("invalid_request", f"invalid request: {message}")]


async def test_a_frame_is_not_held_to_the_cap_of_a_line(path: Path) -> None:
    backend = Listening()
    async with serving(path, backend, surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(request(text="x" * 3_000_000))
        assert await Frames(client).answer() == [TOKEN, DONE]
        assert backend.heard[0].messages[0].content == "x" * 3_000_000


async def test_a_client_that_leaves_frees_its_place(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(request())
        await until(lambda: gate.waiting == 1)
        client.close()
        await until(lambda: server.admission.running == 0)


class Failing(Mock):
    """Raises a schema violation, a code that clients of this wire do not know."""

    def __init__(self) -> None:
        super().__init__(error=SchemaViolation("the answer does not follow the schema"))


async def test_errors_have_codes_that_clients_of_this_wire_know(path: Path) -> None:
    async with serving(path, Failing(), surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(request())
        told = {**refusal("internal", "the answer does not follow the schema"), "reason": "schema_violation"}
        assert await Frames(client).answer() == [told]


def test_every_code_has_a_nearest_one() -> None:
    kinds = [InferdError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        answer = json.loads(framed.encode_error("q", kind.code, "x"))
        assert answer["code"] in framed.CODES
        assert (answer["code"] == kind.code) == (kind.code in framed.CODES)
        assert answer.get("reason", kind.code) == kind.code


# TCP and the key.


@SOCKETS
async def test_frames_follow_the_auth_line(surface: Surface[Any]) -> None:
    async with serving("127.0.0.1:0", surface=surface, api_key="k") as server:
        for later in (False, True):
            client = await server.connect()
            auth = b'{"type":"auth","key":"k"}\n'
            await client.send(*([auth, request()] if later else [auth + request()]))
            assert await Frames(client).answer() == [TOKEN, DONE]


@SOCKETS
async def test_frames_may_follow_an_unneeded_auth_line(path: Path, surface: Surface[Any]) -> None:
    async with serving(path, surface=surface) as server:
        client = await server.connect()
        await client.send(b'{"type":"auth","key":"k"}\n' + request())
        assert await Frames(client).answer() == [TOKEN, DONE]


async def test_frames_without_the_key_are_closed_without_a_byte() -> None:
    async with serving("127.0.0.1:0", surface=FramedSurface(), api_key="k") as server:
        client = await server.connect()
        await client.send(request())
        client.sock.shutdown(socket.SHUT_WR)
        assert await client.receive() == b""


async def test_a_line_still_has_its_cap(path: Path) -> None:
    async with serving(path, surface=FramedSurface(), max_frame_bytes=100) as server:
        client = await server.connect()
        await client.send(ask(session="x" * 100))
        assert await client.line() == error("frame_too_large", "frame exceeds 100 byte cap")
