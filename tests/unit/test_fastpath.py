"""Both implementations of the fast path run the same cases. The expected values are written here or come from
orjson.

(This file has over 400 lines, because everything with two implementations is tested here, and nowhere else.)
"""

from __future__ import annotations

import ast
import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import orjson
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from inferd import _fastpath, _purepath
from inferd.errors import FrameTooLarge
from tests.cases import cases

CAP = 65536
READ_CHUNK = 4096

IMPLEMENTATIONS = pytest.mark.parametrize("impl", [_fastpath, _purepath], ids=["c", "python"])


# Delivering a stream: the bytes are handed over as a socket would, and the lines collected as they come. They
# are kept until the end, which a splitter must survive.


def drain(splitter: Any, lines: list[memoryview]) -> None:
    while (line := splitter.next_line()) is not None:
        lines.append(line)


def deliver(splitter: Any, pieces: list[bytes], put: Callable[[Any, bytes], None]) -> list[bytes | None]:
    """Every line with the tail; a final ``None`` marks a line over the cap."""
    lines: list[memoryview] = []
    try:
        for piece in pieces:
            put(splitter, piece)
            drain(splitter, lines)
        while (line := splitter.take_tail()) is not None:
            lines.append(line)
    except FrameTooLarge:
        return [*map(bytes, lines), None]
    return [*map(bytes, lines)]


def by_feed(splitter: Any, piece: bytes) -> None:
    splitter.feed(piece)


def in_place(splitter: Any, piece: bytes) -> None:
    """Feeds bytes as a socket does: as many as the buffer holds, repeatedly."""
    at = 0
    while at < len(piece) and not splitter.oversized:
        buffer = splitter.get_buffer(-1)
        taken = min(len(buffer), len(piece) - at)
        buffer[:taken] = piece[at : at + taken]
        del buffer
        splitter.buffer_updated(taken)
        at += taken
        if splitter.has_line and at < len(piece):
            pytest.fail("the piece has to be cut where a line ends")


def expected(stream: bytes, cap: int) -> list[bytes | None]:
    lines: list[bytes | None] = []
    *whole, tail = stream.split(b"\n")
    for line in [*whole, tail] if tail else whole:
        if len(line) > cap:
            return [*lines, None]
        lines.append(line.removesuffix(b"\r"))
    return lines


SMALL_CAP = 16
CORPUS = {
    "nothing": b"",
    "one line": b'{"a":1}\n',
    "no newline": b'{"a":1}',
    "two lines and a tail": b"ab\ncde\nf",
    "blank lines": b"\n\n\n",
    "carriage return": b"ab\r\ncd\r\n",
    "only one carriage return goes": b"ab\r\r\n\r\n\r",
    "carriage return inside": b"a\rb\n",
    "tail with carriage return": b"ab\r",
    "NUL bytes": b"\0a\0\n\0\n\0",
    "not UTF-8": b"\xff\xfe\n\xc3\n",
    "UTF-8": "é😀\n\u2028\n".encode(),
    "exactly the cap": b"x" * SMALL_CAP + b"\n" + b"y" * SMALL_CAP,
    "the cap with carriage return": b"x" * (SMALL_CAP - 1) + b"\r\n" + b"y" * (SMALL_CAP - 1) + b"\r",
    "one over the cap": b"ab\n" + b"x" * (SMALL_CAP + 1) + b"\ncd\n",
    "one over the cap by its carriage return": b"ab\n" + b"x" * SMALL_CAP + b"\r\ncd\n",
    "one over the cap in the tail": b"ab\n" + b"x" * (SMALL_CAP + 1),
    "far over the cap": b"ab\ncd\n" + b"x" * (5 * SMALL_CAP) + b"\n",
}
STREAMS = cases("stream", CORPUS.values())


@IMPLEMENTATIONS
class TestCorpus:
    @STREAMS
    def test_whole(self, impl: ModuleType, stream: bytes) -> None:
        assert deliver(impl.LineSplitter(SMALL_CAP), [stream], by_feed) == expected(stream, SMALL_CAP)

    @STREAMS
    def test_byte_by_byte(self, impl: ModuleType, stream: bytes) -> None:
        pieces = [bytes([byte]) for byte in stream]
        assert deliver(impl.LineSplitter(SMALL_CAP), pieces, by_feed) == expected(stream, SMALL_CAP)
        assert deliver(impl.LineSplitter(SMALL_CAP), pieces, in_place) == expected(stream, SMALL_CAP)

    @STREAMS
    def test_every_split_point(self, impl: ModuleType, stream: bytes) -> None:
        for at in range(len(stream) + 1):
            pieces = [stream[:at], stream[at:]]
            assert deliver(impl.LineSplitter(SMALL_CAP), pieces, by_feed) == expected(stream, SMALL_CAP), at

    @STREAMS
    def test_followed_by_more(self, impl: ModuleType, stream: bytes) -> None:
        longer = stream + b"\ntail"
        assert deliver(impl.LineSplitter(SMALL_CAP), [stream, b"\nta", b"il"], by_feed) == expected(
            longer, SMALL_CAP
        )


@IMPLEMENTATIONS
class TestCap:
    def test_the_default_cap_to_the_byte(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(CAP)
        in_place(splitter, b"x" * 65536 + b"\n")
        assert bytes(splitter.next_line()) == b"x" * 65536
        in_place(splitter, b"x" * 65536)
        assert not splitter.has_line
        in_place(splitter, b"x")
        assert splitter.has_line
        with pytest.raises(FrameTooLarge) as caught:
            splitter.next_line()
        assert caught.value.cap == CAP
        assert str(caught.value) == "frame exceeds 65536 byte cap"

    def test_whole_lines_before_the_long_one_come_out_first(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(SMALL_CAP)
        splitter.feed(b"ab\n" + b"x" * 17)
        assert bytes(splitter.next_line()) == b"ab"
        with pytest.raises(FrameTooLarge):
            splitter.next_line()

    def test_bytes_after_a_long_line_are_dropped(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(SMALL_CAP)
        splitter.feed(b"x" * 17)
        for _ in range(3):
            splitter.feed(b"x" * 100_000 + b"\nab\n")
            in_place(splitter, b"y" * 100 + b"\n")
            splitter.get_buffer(-1)[:3] = b"ab\n"
            splitter.buffer_updated(3)
            assert splitter.buffered == 0
            with pytest.raises(FrameTooLarge):
                splitter.next_line()
            with pytest.raises(FrameTooLarge):
                splitter.take_tail()

    def test_no_more_than_the_cap_and_a_chunk_is_ever_held(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(CAP)
        total = 0
        while not splitter.oversized:
            buffer = splitter.get_buffer(-1)
            assert splitter.buffered == total
            assert 0 < len(buffer) <= CAP + READ_CHUNK - total
            total += len(buffer)
            buffer[:] = b"x" * len(buffer)
            splitter.buffer_updated(len(buffer))
        assert CAP < total <= CAP + READ_CHUNK

    def test_untaken_lines_stop_the_reading(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(CAP)
        while splitter.buffered <= CAP // 2:
            buffer = splitter.get_buffer(-1)
            buffer[:] = b"\n" * len(buffer)
            splitter.buffer_updated(len(buffer))
        assert splitter.buffered <= CAP + READ_CHUNK
        with pytest.raises(BufferError):
            splitter.get_buffer(-1)
        with pytest.raises(BufferError):
            splitter.feed(b"x")
        taken = 0
        while splitter.next_line() is not None:
            taken += 1
        assert taken > CAP // 2
        splitter.feed(b"x\n")
        assert bytes(splitter.next_line()) == b"x"

    def test_memory_grows_with_a_line_and_is_given_back(self, impl: ModuleType) -> None:
        cap = 1 << 20
        splitter = impl.LineSplitter(cap)
        tracemalloc.start()
        try:
            in_place(splitter, b"x" * cap)
            held = tracemalloc.get_traced_memory()[0]
            assert cap <= held <= 1.2 * cap + 16384
            in_place(splitter, b"\n")
            line = splitter.next_line()
            assert len(line) == cap
            del line
            in_place(splitter, b"x")
            assert tracemalloc.get_traced_memory()[0] < 16384
        finally:
            tracemalloc.stop()

    def test_work_is_linear_in_the_bytes(self, impl: ModuleType) -> None:
        # 32 MiB in pieces of 32 bytes: to search or to move from the start each time would take many minutes.
        size = 1 << 25
        splitter = impl.LineSplitter(size)
        piece = b"x" * 32
        for _ in range(size // 32):
            splitter.feed(piece)
        assert not splitter.has_line
        splitter.feed(b"\n")
        assert len(splitter.next_line()) == size

    def test_a_cap_has_to_hold_something(self, impl: ModuleType) -> None:
        with pytest.raises(ValueError, match="cap"):
            impl.LineSplitter(0)


@IMPLEMENTATIONS
class TestBuffers:
    def test_a_line_is_read_only_and_a_read_buffer_is_not(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(CAP)
        assert not splitter.get_buffer(-1).readonly
        splitter.feed(b"ab\n")
        line = splitter.next_line()
        assert line.readonly
        assert (line.format, line.itemsize, line.ndim, line.shape, line.contiguous) == ("B", 1, 1, (2,), True)
        with pytest.raises(TypeError):
            line[0] = 0
        assert orjson.loads(memoryview(b'"x"')) == "x"

    def test_a_kept_line_does_not_change(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(CAP)
        kept = []
        for number in range(200):
            text = f"{number}".encode() * (1 + number * 7 % 300)
            in_place(splitter, text + b"\n")
            kept.append((splitter.next_line(), text))
            if number % 3 == 0:
                kept[number // 2][0].tobytes()
        del splitter
        for line, text in kept:
            assert line == text

    def test_a_kept_read_buffer_is_harmless(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(CAP)
        buffers = []
        for _ in range(40):
            buffer = splitter.get_buffer(-1)
            buffers.append(buffer)
            splitter.buffer_updated(len(buffer) // 2)
            while splitter.has_line and not splitter.oversized:
                splitter.next_line()
        del splitter
        for buffer in buffers:
            buffer[:] = b"z" * len(buffer)

    def test_a_count_outside_of_the_buffer_is_refused(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(CAP)
        size = len(splitter.get_buffer(-1))
        for nbytes in (-1, size + 1, sys.maxsize):
            with pytest.raises(ValueError, match="nbytes"):
                splitter.buffer_updated(nbytes)
        assert splitter.buffered == 0

    def test_feed_takes_any_bytes_like_object(self, impl: ModuleType) -> None:
        splitter = impl.LineSplitter(CAP)
        for data in (b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b"", b"\n"):
            splitter.feed(data)
        assert bytes(splitter.next_line()) == b"abc"
        with pytest.raises(TypeError):
            splitter.feed("text")


class LineProtocol(asyncio.BufferedProtocol):
    """Splits what it reads as a session does: paused while a line waits."""

    def __init__(self, splitter: Any, done: asyncio.Future[list[bytes]]) -> None:
        self.splitter = splitter
        self.lines: list[memoryview] = []
        self.done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.splitter.get_buffer(sizehint)  # type: ignore[no-any-return]

    def buffer_updated(self, nbytes: int) -> None:
        self.splitter.buffer_updated(nbytes)
        if self.splitter.has_line:
            self.transport.pause_reading()  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_soon(self.take)

    def take(self) -> None:
        drain(self.splitter, self.lines)
        self.transport.resume_reading()  # type: ignore[attr-defined]

    def eof_received(self) -> bool:
        while (line := self.splitter.take_tail()) is not None:
            self.lines.append(line)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set_result([bytes(line) for line in self.lines])


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop = request.param()
    yield loop
    loop.close()


@IMPLEMENTATIONS
def test_reads_in_place_from_a_socket(impl: ModuleType, loop: asyncio.AbstractEventLoop) -> None:
    lines = [b"%d" % n * (n * n % 5000) for n in range(150)]
    stream = b"\r\n".join(lines) + b"\ntail"

    async def exchange() -> list[bytes]:
        near, far = socket.socketpair()
        near.setblocking(False)
        done: asyncio.Future[list[bytes]] = loop.create_future()
        await loop.create_connection(lambda: LineProtocol(impl.LineSplitter(CAP), done), sock=near)
        with far:
            far.setblocking(False)
            await loop.sock_sendall(far, stream)
        return await done

    assert loop.run_until_complete(exchange()) == [*lines, b"tail"]


ESCAPED = {
    "": b"",
    "plain": b"plain",
    'say "hi"': b'say \\"hi\\"',
    "back\\slash": b"back\\\\slash",
    "\n\t\r\b\f": b"\\n\\t\\r\\b\\f",
    "\0\x01\x0b\x1f": b"\\u0000\\u0001\\u000b\\u001f",
    "a\0b": b"a\\u0000b",
    "\x7f\x80\u2028é😀/": "\x7f\x80\u2028é😀/".encode(),
}


@IMPLEMENTATIONS
class TestFrames:
    @cases("text", ESCAPED)
    def test_escaped_characters(self, impl: ModuleType, text: str) -> None:
        assert impl.escape_json(text) == ESCAPED[text]

    def test_every_code_point_as_orjson(self, impl: ModuleType) -> None:
        for start in range(0, 0x110000, 0x800):
            if start != 0xD800:
                text = "".join(map(chr, range(start, start + 0x800)))
                assert impl.escape_json(text) == orjson.dumps(text)[1:-1]

    @cases("special", ['"', "\\", "\n", "\0", "\x1f", "\x7f", "é", "😀", " ", "!", "#", "[", "]"])
    def test_at_every_place_of_a_word(self, impl: ModuleType, special: str) -> None:
        for size in range(20):
            for at in range(size + 1):
                text = "a" * at + special + "b" * (size - at)
                assert impl.escape_json(text) == orjson.dumps(text)[1:-1]

    @cases("char, size", itertools.product(["a", "\x01", "é"], [511, 512, 513, 100_000]))
    def test_long_texts(self, impl: ModuleType, char: str, size: int) -> None:
        text = char * size
        assert impl.escape_json(text) == orjson.dumps(text)[1:-1]

    @given(text=st.text(st.characters(codec="utf-8")))
    def test_random_text_as_orjson(self, impl: ModuleType, text: str) -> None:
        assert impl.escape_json(text) == orjson.dumps(text)[1:-1]

    def test_a_frame_is_prefix_text_suffix(self, impl: ModuleType) -> None:
        prefix, suffix = b'{"type":"token","id":"q7","content":"', b'"}\n'
        for text in (*ESCAPED, "a\n" * 600):
            frame = prefix + impl.escape_json(text) + suffix
            assert impl.token_frame(prefix, text, suffix) == frame
            assert orjson.loads(frame) == {"type": "token", "id": "q7", "content": text}

    @cases("text", ["\ud800", "a\udfffb", "\ude00\ud83d", "x" * 600 + "\ud83d"])
    def test_lone_surrogates_are_refused(self, impl: ModuleType, text: str) -> None:
        with pytest.raises(ValueError, match="surrogates"):
            impl.escape_json(text)
        with pytest.raises(ValueError, match="surrogates"):
            impl.token_frame(b"p", text, b"s")


@IMPLEMENTATIONS
class TestNames:
    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"{}",
            b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}',
            b'[{"a":1},{"a":2}]',
            b'{"a":"a","b":"\\"a\\":","c":"{\\"a\\":1,\\"a\\":2}"}',
            b'{"a":"\\\\","b":"\\\\\\"","aa":["a","a"],"A":1,"":2}',
            json.dumps([{f"{i}": i for i in range(256)}] * 3).encode(),
            b'{"a":' * 64 + b"1" + b"}" * 64,
            b"[" * 64 + b"]" * 64,
        ],
    )
    def test_none_is_repeated(self, impl: ModuleType, line: bytes) -> None:
        assert not impl.may_repeat_a_name(line)

    @pytest.mark.parametrize(
        "line",
        [
            b'{"a":1,"a":1}',
            b'{"a":{"b":{"c":1}},"a":1}',
            b'[1,{"b":[{"a":1,"c":"\\"","a":2}]}]',
            b'{"a" \t\r\n:1,"b":2,"a":1}',
            b'{"":1,"":2}',
        ],
    )
    def test_one_is_repeated(self, impl: ModuleType, line: bytes) -> None:
        assert impl.may_repeat_a_name(line)

    @pytest.mark.parametrize(
        "line",
        [
            b'{"\\u0061":1}',
            json.dumps({f"{i}": i for i in range(257)}).encode(),
            b'{"a":' * 65 + b"1" + b"}" * 65,
            b"[" * 65 + b"]" * 65,
        ],
        ids=["an escape", "many names", "many objects", "many lists"],
    )
    def test_what_is_not_compared_may_repeat(self, impl: ModuleType, line: bytes) -> None:
        assert impl.may_repeat_a_name(line)


@IMPLEMENTATIONS
class TestRecords:
    FIELDS: ClassVar[dict[str, object]] = {
        "none": None,
        "float": 0.25,
        "int": 3,
        "large": 2**63,
        "negative": -1,
        "true": True,
        "word": "mock1",
        "empty": "",
        "long": "abcdefghijk",
        "accent": "\u00e9t\u00e9",
        "spaced": "a b",
        "token": "secret",
        "list": [1],
    }

    def test_only_numbers_and_short_words_are_added_as_they_are(self, impl: ModuleType) -> None:
        entry = {"int": 0}
        impl.add_fields(entry, self.FIELDS, lambda value, name: (name, value))
        cleaned = {"large", "negative", "true", "empty", "long", "accent", "spaced", "token", "list"}
        assert {name for name, value in entry.items() if value == (name, self.FIELDS[name])} == cleaned
        assert entry["int"] == 0
        assert entry["none"] is None
        assert (entry["float"], entry["word"]) == (0.25, "mock1")
        assert list(entry) == ["int", *(name for name in self.FIELDS if name != "int")]

    def test_only_numbers_and_words_are_joined_as_they_are(self, impl: ModuleType) -> None:
        assert impl.joined_fields(self.FIELDS, {"spaced", "token"}, lambda value: f"<{value}>") == (
            f" float=0.25 int=3 large={2**63} negative=-1 true=<True> word=mock1 empty=<>"
            " long=abcdefghijk accent=<\u00e9t\u00e9> list=<[1]>"
        )


@IMPLEMENTATIONS
class TestKeys:
    def test_equal(self, impl: ModuleType) -> None:
        for key in (b"", b"k", b"\0", bytes(range(256)), b"x" * 4096, b"y" * 10_000):
            assert impl.keys_equal(key, bytes(bytearray(key))) is True

    def test_a_difference_anywhere(self, impl: ModuleType) -> None:
        key = bytes(range(256)) * 20
        for size in (1, 32, 4096, 4097, 5120):
            for at in {0, size // 2, size - 1}:
                other = bytearray(key[:size])
                other[at] ^= 0x80
                assert impl.keys_equal(key[:size], bytes(other)) is False
                assert impl.keys_equal(bytes(other), key[:size]) is False

    def test_a_prefix_is_not_the_key(self, impl: ModuleType) -> None:
        for key in (b"secret", b"\0\0", b"ssss", b"x" * 4097):
            for other in (b"", key[:1], key[:-1], key + b"\0", key + key[:1], key * 2):
                assert impl.keys_equal(key, other) is False
                assert impl.keys_equal(other, key) is False

    def test_only_bytes(self, impl: ModuleType) -> None:
        with pytest.raises((TypeError, AttributeError)):
            impl.keys_equal("a", "a")


def imported_with(environment: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


class TestSwitch:
    @pytest.mark.parametrize(
        ("choice", "module"),
        [("", "inferd._fastpath"), ("c", "inferd._fastpath"), ("python", "inferd._purepath")],
    )
    def test_the_environment_chooses(self, choice: str, module: str) -> None:
        code = "from inferd import fastpath as f; print(f.LineSplitter.__module__, f.keys_equal.__module__)"
        done = imported_with({"INFERD_IMPL": choice}, code)
        assert (done.stderr, done.stdout.split()) == ("", [module, module])

    def test_another_name_is_an_error(self) -> None:
        done = imported_with({"INFERD_IMPL": "rust"}, "import inferd.fastpath")
        assert done.returncode != 0
        assert "ConfigError: INFERD_IMPL is 'rust'; it must be 'c' or 'python'" in done.stderr

    def test_a_missing_extension_is_an_error(self) -> None:
        code = "import sys; sys.modules['inferd._fastpath'] = None; import inferd.fastpath"
        done = imported_with({"INFERD_IMPL": "c"}, code)
        assert done.returncode != 0
        assert "ConfigError: the compiled module inferd._fastpath cannot be loaded" in done.stderr
        assert imported_with({"INFERD_IMPL": "python"}, code).returncode == 0

    def test_the_stub_matches_both_implementations(self) -> None:
        stub = ast.parse((Path(_purepath.__file__).parent / "_fastpath.pyi").read_text())
        functions = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
        (splitter,) = (node for node in stub.body if isinstance(node, ast.ClassDef))
        members = {node.name for node in splitter.body if isinstance(node, ast.FunctionDef)} - {"__init__"}
        for impl in (_fastpath, _purepath):
            public = {
                name
                for name, value in vars(impl).items()
                if getattr(value, "__module__", "") == impl.__name__
            }
            assert {name for name in public if not name.startswith("_")} == functions | {"LineSplitter"}
            assert {name for name in dir(impl.LineSplitter(1)) if not name.startswith("_")} == members
