"""The two line splitters in lockstep, against each other and against ``bytes.split``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferd import _fastpath, _purepath
from inferd.errors import FrameTooLarge

READ_CHUNK = 4096

Step = tuple[str, bytes]


def check(cap: int, steps: Iterable[Step]) -> None:
    """Runs ``steps`` on both: feed or read bytes, take a line and keep or drop it, in any order."""
    compiled, pure = _fastpath.LineSplitter(cap), _purepath.LineSplitter(cap)
    accepted = bytearray()
    kept: list[tuple[memoryview, bytes]] = []
    lines: list[bytes | None] = []

    def take(name: str, keep: bool) -> bool:
        line, same = outcome(compiled, name), outcome(pure, name)
        assert (line is None) == (same is None)
        if line is None or same is None:
            return False
        if isinstance(line, FrameTooLarge) or isinstance(same, FrameTooLarge):
            assert isinstance(line, FrameTooLarge)
            assert isinstance(same, FrameTooLarge)
            return False
        assert line == same
        lines.append(bytes(same))
        if keep:
            kept.append((line, bytes(same)))
        return True

    for kind, data in steps:
        if kind == "take":
            take("next_line", keep=bool(data))
        else:
            deliver = fed if kind == "feed" else read_in_place
            taken = deliver(compiled, data)
            assert deliver(pure, data) == taken
            accepted += data if taken else b""
        assert compiled.buffered == pure.buffered <= cap + READ_CHUNK
        assert compiled.has_line == pure.has_line
        assert compiled.oversized == pure.oversized

    while take("take_tail", keep=True):
        pass
    assert lines + [None] * compiled.oversized == expected(bytes(accepted), cap)
    for line, text in kept:
        assert line == text


def outcome(splitter: Any, name: str) -> memoryview | FrameTooLarge | None:
    try:
        line: memoryview | None = getattr(splitter, name)()
    except FrameTooLarge as error:
        assert splitter.oversized
        return error
    return line


def fed(splitter: Any, data: bytes) -> bool:
    try:
        splitter.feed(data)
    except BufferError:
        assert splitter.has_line
        return False
    return True


def read_in_place(splitter: Any, data: bytes) -> bool:
    try:
        buffer = splitter.get_buffer(-1)
    except BufferError:
        assert splitter.has_line
        return False
    assert len(data) <= len(buffer)
    assert isinstance(splitter, _purepath.LineSplitter) or (
        splitter.buffered + len(buffer) <= max(splitter.cap, READ_CHUNK) + READ_CHUNK
    )
    buffer[: len(data)] = data
    splitter.buffer_updated(len(data))
    return True


def expected(stream: bytes, cap: int) -> list[bytes | None]:
    *whole, tail = stream.split(b"\n")
    lines: list[bytes | None] = []
    for line in [*whole, tail] if tail else whole:
        if len(line) > cap:
            return [*lines, None]
        lines.append(line.removesuffix(b"\r"))
    return lines


PIECES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b"\0"]), max_size=20).map(b"".join),
    st.integers(1, 1000).map(lambda size: b"x" * size),
)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["feed", "read"]), PIECES),
    st.tuples(st.just("take"), st.sampled_from([b"", b"keep"])),
)


@given(cap=st.one_of(st.integers(1, 40), st.integers(1, 20_000)), steps=st.lists(STEPS, max_size=60))
def test_any_order_of_calls(cap: int, steps: list[Step]) -> None:
    check(cap, steps)
