"""Attachments of the framed wire, in blobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferd.serve import connection
from inferd.serve.surfaces.v2 import FramedSurface
from inferd.wire import framed
from tests.cases import cases
from tests.fuzz.test_frames import frame
from tests.in_process import serving
from tests.unit.test_framed import DONE, TOKEN, Frames, Listening, blob, refusal, request

PICTURE = {"kind": "image", "id": "p", "width": 1, "height": 1}
NOTE = {"kind": "text", "id": "n"}
TWO = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image", "attachment_id": "p"}, {"type": "text", "attachment_id": "n"}],
        }
    ],
    "attachments": [PICTURE, NOTE],
}


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


async def test_attachments_come_in_blobs_in_order(path: Path) -> None:
    backend = Listening()
    async with serving(path, backend, surface=FramedSurface()) as server:
        client = await server.connect()
        frames = Frames(client)
        for _ in range(2):
            await client.send(request(**TWO), blob("p", b"rgb"), blob("n", b"note\n"))
            assert await frames.answer() == [TOKEN, DONE]
        content = backend.heard[1].messages[0].content
        assert not isinstance(content, str)
        assert bytes(content[0].data) == b"rgb"  # type: ignore[union-attr]
        assert content[1] == "note\n"


async def test_large_blobs_right_after_their_request(path: Path) -> None:
    side = 1000
    picture = {**PICTURE, "width": side, "height": side}
    asked = request(**{**TWO, "attachments": [picture, NOTE]})
    backend = Listening()
    async with serving(path, backend, surface=FramedSurface()) as server:
        client = await server.connect()
        frames = Frames(client)
        for _ in range(3):
            await client.send(asked + blob("p", b"rgb" * side * side) + blob("n", b"n" * 300_000))
            assert await frames.answer() == [TOKEN, DONE]
            content = backend.heard[-1].messages[0].content
            assert [len(content[0].data), len(content[1])] == [3 * side * side, 300_000]  # type: ignore[union-attr, arg-type]


BLOBS = {
    "another attachment": (blob("n", b"note"), "the descriptor names another attachment than the next one"),
    "no descriptor": (request(), "expected an attachment_blob descriptor"),
    "a blob at once": (frame(b"rgb", framed.BLOB), "expected a JSON frame"),
    "another length": (blob("p", b"rgb", 4), "blob length 3 is not the descriptor's 4"),
    "JSON for a blob": (
        blob("p", b"rgb")[: -len(frame(b"rgb"))] + frame(b"rgb"),
        "expected a blob frame",
    ),
    "the end": (b"", "stream ended before all attachments were sent"),
    "the end within": (blob("p", b"rgb")[:-1], "stream ended mid-frame"),
    "a negative length": (blob("p", b"", -1), "expected an attachment_blob descriptor"),
}


@cases("name", BLOBS)
async def test_blobs_that_are_not_those_of_the_request(path: Path, name: str) -> None:
    data, message = BLOBS[name]
    async with serving(path, Listening(), surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(request(**TWO), data)
        client.finish_sending()
        frames = Frames(client)
        assert await frames.answer() == [refusal("invalid_request", f"malformed frame: {message}")]
        assert await frames.next() is None


async def test_a_blob_beyond_the_cap_is_refused_before_it_is_read(path: Path) -> None:
    async with serving(path, Listening(), max_attachment_bytes=100, surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(request(**TWO), blob("p", b"x" * 101)[:-101])
        frames = Frames(client)
        assert await frames.answer() == [refusal("frame_too_large", "attachments[0] exceeds 100 byte cap")]
        assert await frames.next() is None


async def test_a_blob_is_reserved_before_it_is_read(path: Path) -> None:
    async with serving(path, Listening(), max_input_memory_bytes=100, surface=FramedSurface()) as server:
        client = await server.connect()
        await client.send(request(**TWO), blob("p", b"x" * 101)[:-101])
        frames = Frames(client)
        assert await frames.answer() == [refusal("frame_too_large", "attachments exceed 100 byte cap")]
        assert await frames.next() is None


async def test_a_refusal_that_needs_no_blob_comes_at_once(path: Path) -> None:
    async with serving(path, Listening(), surface=FramedSurface()) as server:
        for listed, code in (
            ([{"kind": "video", "id": "v"}], "attachment_unsupported"),
            ([{"kind": "text", "id": str(n)} for n in range(33)], "invalid_request"),
        ):
            client = await server.connect()
            await client.send(request(attachments=listed))
            frames = Frames(client)
            assert [each["code"] for each in await frames.answer()] == [code]
            assert await frames.next() is None


async def test_an_unknown_kind_is_refused_after_its_blob(path: Path) -> None:
    async with serving(path, Listening(), surface=FramedSurface()) as server:
        client = await server.connect()
        frames = Frames(client)
        await client.send(request(attachments=[{"kind": "odour", "id": "o"}]), blob("o", b"?"), request())
        message = "invalid request: attachments contain an unknown kind"
        assert await frames.answer() == [refusal("invalid_request", message)]
        assert await frames.answer() == [TOKEN, DONE]


async def test_a_client_that_stops_sending_its_blobs_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PIECE_SECS", 0.01)
    async with serving(path, Listening(), surface=FramedSurface()) as server:
        for data in (request()[:1], request()[:20], request(**TWO), request(**TWO) + blob("p", b"rgb")):
            client = await server.connect()
            await client.send(data)
            assert await client.receive() == b""
