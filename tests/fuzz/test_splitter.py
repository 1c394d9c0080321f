"""Both line splitters get the same input step by step, and are compared with each other and with the input
bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferd import _fastpath, _purepath
from inferd.errors import FrameTooLarge

READ_CHUNK = 4096

Step = tuple[str, bytes]


class Pair:
    """Both splitters, and the bytes that they must hold."""

    def __init__(self, cap: int) -> None:
        self.compiled, self.pure = _fastpath.LineSplitter(cap), _purepath.LineSplitter(cap)
        self.cap = cap
        self.held = bytearray()
        self.kept: list[tuple[memoryview, bytes]] = []

    def put(self, kind: str, data: bytes) -> None:
        deliver = fed if kind == "feed" else read_in_place
        taken = deliver(self.compiled, data)
        assert deliver(self.pure, data) == taken
        if taken and not self.oversized():
            self.held += data

    def take(self, name: str, keep: bool) -> bool:
        """Takes a line from both; returns whether they had one."""
        line, same = outcome(self.compiled, name), outcome(self.pure, name)
        end = self.held.find(b"\n")
        if isinstance(line, FrameTooLarge) or isinstance(same, FrameTooLarge):
            assert isinstance(line, FrameTooLarge)
            assert isinstance(same, FrameTooLarge)
            self.held.clear()
            return False
        assert line == same
        if line is None:
            assert end < 0
            assert len(self.held) <= self.cap
            return False
        if end < 0:
            assert name == "take_tail"
            end = len(self.held)
        assert end <= self.cap
        text = bytes(self.held[:end]).removesuffix(b"\r")
        assert line == text
        del self.held[: end + 1]
        if keep:
            self.kept.append((line, text))
        return True

    def take_raw(self, size: int) -> None:
        targets = [bytearray(size), bytearray(size)]
        moved = self.compiled.take_into(memoryview(targets[0]))
        assert self.pure.take_into(memoryview(targets[1])) == moved
        assert targets[0] == targets[1] == self.held[:moved].ljust(size, b"\0")
        assert moved == min(size, len(self.held))
        del self.held[:moved]

    def oversized(self) -> bool:
        assert self.compiled.has_line == self.pure.has_line
        assert self.compiled.oversized == self.pure.oversized
        return self.pure.oversized


def check(cap: int, steps: Iterable[Step]) -> None:
    """Runs ``steps`` on both: feed or read bytes, take a line and keep or drop it, take raw bytes."""
    pair = Pair(cap)
    for kind, data in steps:
        if kind == "take":
            pair.take("next_line", keep=bool(data))
        elif kind == "raw":
            pair.take_raw(len(data))
        else:
            pair.put(kind, data)
            if pair.oversized():
                pair.held.clear()
        assert pair.compiled.buffered == pair.pure.buffered <= cap + READ_CHUNK
        assert pair.pure.buffered == len(pair.held) or pair.oversized()
    while pair.take("take_tail", keep=True):
        pass
    for line, text in pair.kept:
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


PIECES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b"\0"]), max_size=20).map(b"".join),
    st.integers(1, 1000).map(lambda size: b"x" * size),
)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["feed", "read"]), PIECES),
    st.tuples(st.just("take"), st.sampled_from([b"", b"keep"])),
    st.tuples(st.just("raw"), st.integers(0, 300).map(bytes)),
)


@given(cap=st.one_of(st.integers(1, 40), st.integers(1, 20_000)), steps=st.lists(STEPS, max_size=60))
def test_any_order_of_calls(cap: int, steps: list[Step]) -> None:
    check(cap, steps)
