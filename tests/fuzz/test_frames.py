"""Frames: both line splitters step by step, the conversion of lines to frames, and whole sessions, each
compared with a simple parser."""

from __future__ import annotations

import asyncio
import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from inferd import _fastpath, _purepath
from inferd.errors import FrameTooLarge, InferdError, MalformedFrame
from inferd.serve.surfaces.v2 import FramedSurface
from inferd.wire import attachments, framed, frames
from tests.fuzz.test_v2_framing import FILE_CAP, exchange

MAX = _purepath.MAX_FRAME_BYTES


def leb128(size: int, padding: int = 0) -> bytes:
    """``size`` with ``padding`` bytes more than it needs."""
    digits = []
    while size >= 0x80:
        digits.append(size & 0x7F)
        size >>= 7
    digits += [size, *[0] * padding]
    return bytes([digit | 0x80 for digit in digits[:-1]] + digits[-1:])


def frame(payload: bytes, kind: int = framed.JSON, padding: int = 0) -> bytes:
    return leb128(len(payload), padding) + bytes([kind]) + payload


def read_head(data: bytes) -> tuple[tuple[int, int] | str | None, int]:
    """The head at the start of ``data``, or its error, and its length, by a simple parser."""
    end = next((i for i, byte in enumerate(data[:5]) if byte < 0x80), None)
    if end is None:
        return ("malformed" if len(data) >= 5 else None), 0
    size = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data[: end + 1]))
    if size > MAX:
        return "too large", 0
    if len(data) == end + 1:
        return None, 0
    kind = data[end + 1]
    return ((kind, size), end + 2) if kind in (1, 2) else ("malformed", 0)


def outcome(splitter: _fastpath.LineSplitter | _purepath.LineSplitter) -> tuple[int, int] | str | None:
    try:
        return splitter.next_head()
    except FrameTooLarge:
        return "too large"
    except MalformedFrame:
        return "malformed"


HEADS = st.one_of(
    st.binary(max_size=7),
    st.builds(leb128, st.integers(0, 2**35 - 1)),
    st.builds(frame, st.binary(max_size=300), st.sampled_from([1, 2, 1, 2, 0, 3, 123]), st.integers(0, 2)),
    st.sampled_from([b"\n", b'{"id":"q"}\n', leb128(MAX) + b"\x01", leb128(MAX + 1) + b"\x01"]),
)


@given(
    pieces=st.lists(st.tuples(st.booleans(), HEADS), max_size=20),
    takes=st.lists(st.integers(0, 400), max_size=20),
)
def test_heads_in_any_order_of_calls(pieces: list[tuple[bool, bytes]], takes: list[int]) -> None:
    pair = (_fastpath.LineSplitter(20), _purepath.LineSplitter(20))
    held = b""
    for splitter in pair:
        splitter.framed = True
    for (in_place, data), take in itertools.zip_longest(pieces, takes, fillvalue=(False, b"")):
        if not isinstance(take, int):
            take = 0
        for splitter in pair:
            if in_place:
                buffer = splitter.get_buffer()
                buffer[: len(data)] = data
                splitter.buffer_updated(len(data))
            else:
                splitter.feed(data)
        held += data
        expected, length = read_head(held)
        held = held[length:]
        for splitter in pair:
            assert outcome(splitter) == expected
            assert not splitter.has_line
            assert not splitter.oversized
            assert splitter.buffered == len(held)
            assert splitter.peek(7) == held[:7]
        for splitter in pair:
            target = bytearray(take)
            assert splitter.take_into(memoryview(target)) == min(take, len(held))
            assert bytes(target).rstrip(b"\0") == held[:take].rstrip(b"\0")
        held = held[take:]
    for splitter in pair:
        splitter.framed = False
    lines = [splitter.next_line() if len(held) <= 20 else None for splitter in pair]
    assert lines[0] == lines[1]


@given(lines=st.lists(st.binary(max_size=400).map(lambda line: line.replace(b"\n", b""))))
def test_lines_made_into_frames(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    expected = b"".join(frame(line) for line in lines)
    assert _fastpath.frame_lines(data) == _purepath.frame_lines(data) == expected


NAMES = st.lists(
    st.sampled_from([b'"', b":", b" ", b"\t", b"\n", b"a", b'\\"', b'"a":', b'"b" :']), max_size=30
)


@given(line=NAMES.map(b"".join))
def test_both_parsers_count_names_alike(line: bytes) -> None:
    assert _fastpath.count_names(line) == _purepath.count_names(line)


OBJECTS = st.recursive(
    st.sampled_from([b"1", b"null", b'"a"', b'"\\\\"', b'"\\"a\\":"', b'"{"']),
    lambda values: st.one_of(
        st.lists(values, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]"),
        st.lists(st.tuples(st.sampled_from([b'"a"', b'"b" ', b'""', b'"\\u0061"']), values), max_size=3).map(
            lambda items: b"{" + b",".join(name + b":" + value for name, value in items) + b"}"
        ),
    ),
)


@given(line=OBJECTS)
def test_a_repeated_name_is_found(line: bytes) -> None:
    def repeats(value: object) -> bool:
        if isinstance(value, frames.Pairs):
            names = [name for name, _ in value]
            return len(names) > len(set(names)) or any(repeats(inner) for _, inner in value)
        return isinstance(value, list) and any(map(repeats, value))

    found = _fastpath.may_repeat_a_name(line)
    assert found == _purepath.may_repeat_a_name(line)
    assert found == (repeats(frames.pairs(line)) or b"u0061" in line)


async def answers(pieces: list[bytes]) -> list[tuple[str, str]]:
    """The id of each answer, and how it ended: ``done``, or the code of its error."""
    received = await exchange(pieces, FramedSurface())
    ends = []
    while received:
        head, length = read_head(received)
        assert isinstance(head, tuple)
        assert head[0] == framed.JSON
        answer = json.loads(received[length : length + head[1]])
        received = received[length + head[1] :]
        if answer["type"] != "frame":
            ends.append((answer["id"], answer.get("code", "done")))
    return ends


def expected_ends(stream: bytes) -> list[tuple[str, str]]:
    """The expected answers of a session to a stream of frames, by a simple parser of the whole stream."""
    found: list[tuple[str, str]] = []
    rest = stream

    def part() -> tuple[int, bytes] | None:
        nonlocal rest
        head, length = read_head(rest)
        if head == "too large":
            raise FrameTooLarge(MAX)
        if isinstance(head, str) or (head is None and rest) or (head and len(rest) < length + head[1]):
            raise MalformedFrame("")
        if head is None:
            return None
        payload, rest = rest[length : length + head[1]], rest[length + head[1] :]
        return head[0], payload

    def wanted(kind: int) -> bytes:
        got = part()
        if got is None or got[0] != kind:
            raise MalformedFrame("")
        return got[1]

    while True:
        request_id = ""
        whole = False
        try:
            got = part()
            if got is None:
                return found
            if got[0] != framed.JSON:
                raise MalformedFrame("")
            whole = not framed.content_may_follow(got[1])
            request = framed.parse(got[1])
            request_id, whole = request.id, False
            total = 0
            for i, attachment in framed.expected(request):
                size = framed.read_descriptor(wanted(framed.JSON), attachment, request_id)
                total = attachments.add_size(i, size, total, FILE_CAP)
                blob = wanted(framed.BLOB)
                if len(blob) != size:
                    raise MalformedFrame("")
                framed.assign(attachment, memoryview(blob))
            whole = True
            framed.validate(request)
            found.append((request_id, "done"))
        except InferdError as error:
            found.append((request_id or getattr(error, "request_id", ""), error.code))
            if error.closes or not whole:
                return found


KINDS = st.sampled_from(["text", "text", "image", "odd", "video"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """The frames of a request, or sometimes invalid ones."""
    sizes = draw(st.lists(st.sampled_from([0, 1, 50, 400, FILE_CAP, FILE_CAP + 1]), max_size=3))
    files = [{"kind": draw(KINDS), "id": str(n), "width": 1, "height": 1} for n, _ in enumerate(sizes)]
    body = {
        "id": "q",
        "wire_version": draw(st.sampled_from([1] * 9 + [0, 2, "1"])),
        "messages": [
            {
                "role": draw(st.sampled_from(["user"] * 9 + ["nobody"])),
                "content": [{"type": "text", "text": "hi"}],
            }
        ],
        "attachments": files,
    }
    if not files and draw(st.booleans()):
        del body["attachments"]
    payload = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:
        payload = draw(st.sampled_from([b"", b"{}", b"[]", b"[" * 400, payload[:-1], b"\xff"]))
    parts = [frame(payload, padding=draw(st.integers(0, 1)))]
    for n, size in enumerate(sizes):
        told = max(0, size + draw(st.sampled_from([0] * 15 + [1, -1])))
        described = {"type": "attachment_blob", "attachment_id": str(n), "len": told}
        parts += [frame(json.dumps(described).encode()), frame(b"x" * size, framed.BLOB)]
    if draw(st.integers(0, 9)) == 0:
        parts.insert(
            draw(st.integers(0, len(parts))), draw(st.sampled_from([b"\x05", b"\x00\x07", frame(b"{}")]))
        )
    return b"".join(parts)


@given(parts=st.lists(requests(), min_size=1, max_size=3), cuts=st.lists(st.integers(0, 6000), max_size=6))
def test_frames_cut_at_any_point(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(edges)]
    assert asyncio.run(asyncio.wait_for(answers(pieces), 100)) == expected_ends(stream)
