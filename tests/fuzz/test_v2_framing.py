"""Attachments after their lines: the answers do not depend on how the stream is cut into reads."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferd.engine.mock import Mock
from inferd.errors import DecodeError, InferdError
from inferd.serve import peer
from inferd.serve.hangup import HangupWatch
from inferd.serve.memory import InputMemory
from inferd.serve.observe.metrics import Metrics
from inferd.serve.queues import Queues
from inferd.serve.router import Router
from inferd.serve.session import Service
from inferd.serve.surface import Surface
from inferd.serve.surfaces.v2 import BlockSurface
from inferd.wire import attachments, v2, v2_rules

CAP = 300
FILE_CAP = 2000


async def exchange(pieces: list[bytes], surface: Surface[Any]) -> bytes:
    """The session's output for the pieces, each in its own read if the reads keep up."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    loop = asyncio.get_running_loop()
    hangups = HangupWatch(loop)
    service = Service(
        surface=surface,
        admission=Queues(1, 0),
        router=Router([Mock()]),
        hangups=hangups,
        metrics=Metrics(),
        api_key=None,
        max_frame_bytes=CAP,
        max_attachment_bytes=FILE_CAP,
        memory=InputMemory(1_000_000),
        write_timeout_secs=0,
    )
    serving = loop.create_task(service.serve(ours, peer.of(ours), 1))
    sending = loop.create_task(send(theirs, pieces))
    received = b""
    while chunk := await loop.sock_recv(theirs, 65536):
        received += chunk
    sending.cancel()
    theirs.close()
    await serving
    hangups.close()
    return received


async def answers(pieces: list[bytes]) -> list[tuple[str, str]]:
    """The id of each answer, and its last frame."""
    received = await exchange(pieces, BlockSurface())
    frames = [json.loads(line) for line in received.splitlines()]
    ends = [frame for frame in frames if frame["type"] != "frame"]
    return [(frame["id"], frame.get("message", "done")) for frame in ends]


async def send(sock: socket.socket, pieces: list[bytes]) -> None:
    for piece in pieces:
        await asyncio.get_running_loop().sock_sendall(sock, piece)
        await asyncio.sleep(0)
    sock.shutdown(socket.SHUT_WR)


def expected(stream: bytes) -> list[tuple[str, str]]:
    """The expected answers, by a simple parser of the whole stream."""
    found: list[tuple[str, str]] = []
    while stream:
        line, _, rest = stream.partition(b"\n")
        if len(line) > CAP:
            return [*found, ("", f"frame exceeds {CAP} byte cap")]
        request_id = ""
        try:
            request = v2.parse(line.removesuffix(b"\r"))
            request_id = request.id
            size = attachments.raw_size(request.attachments or (), FILE_CAP)
            if len(rest) < size:
                raise DecodeError(f"the input ends within the {size} bytes of the attachments", request_id)
            attachments.assign(request.attachments or (), memoryview(rest[:size]))
            stream = rest[size:]
            v2_rules.validate(request)
            found.append((request_id, "done"))
        except InferdError as error:
            found.append((request_id or getattr(error, "request_id", ""), str(error)))
            whole = not (isinstance(error, DecodeError) and v2.may_carry_raw(line))
            if error.closes or not whole:
                return found
            stream = rest if isinstance(error, DecodeError) else stream
    return found


SIZES = st.lists(st.sampled_from([0, 1, 3, 50, 400, FILE_CAP, FILE_CAP + 1]), max_size=3)
RAW = st.sampled_from([b"\n", b"\0", b'{"id":"x"}\n', b"\r\n", "é".encode()])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request and its bytes, sometimes with too few or too many bytes, or an invalid request."""
    sizes = draw(SIZES)
    kind = draw(st.sampled_from(["text", "text", "video", "odd"]))
    files = [{"kind": kind, "id": str(n), "size": size} for n, size in enumerate(sizes)]
    content = [{"type": "text", "text": draw(st.sampled_from(["hi", '"size"', ""]))}]
    line = json.dumps({"id": "q", "messages": [{"role": "user", "content": content}], "attachments": files})
    if draw(st.integers(0, 9)) == 0:
        line = draw(st.sampled_from(["", "{}", "[" * 400, line.replace("user", "nobody")]))
    total = max(0, sum(sizes) + draw(st.sampled_from([0] * 8 + [-1, 1])))
    raw = (draw(RAW) * total)[:total]
    return line.encode() + draw(st.sampled_from([b"\n", b"\n", b"\r\n"])) + raw


@given(parts=st.lists(requests(), max_size=3), cuts=st.lists(st.integers(0, 6000), max_size=6))
def test_a_stream_cut_at_any_point(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(edges)]
    assert asyncio.run(asyncio.wait_for(answers(pieces), 100)) == expected(stream)
