"""The cost of a line and of a frame in nanoseconds: inferd's compiled and pure Python code, compared with
orjson and msgspec.

``pytest bench/micro`` runs these; ``bench/run.py framing`` also runs them, and adds the ratios.
"""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import orjson
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from inferd import _fastpath, _purepath
from inferd.wire import v1

IMPLEMENTATIONS = {"inferd": _fastpath, "inferd, plain Python": _purepath}

PREFIX, SUFFIX = v1.token_prefix("q7"), v1.TOKEN_SUFFIX
TOKENS = {
    "a token": " hello",
    "a token to escape": '"\n\\',
    "a paragraph": "A line of text, one of four. " * 4,
}


class Token(msgspec.Struct, tag_field="type", tag="token"):
    id: str
    content: str


def encoders(text: str) -> dict[str, Callable[[], Any]]:
    """Each function makes the bytes of one frame; the empty call shows the cost of the measurement itself."""
    frame = {"type": "token", "id": "q7", "content": text}
    struct, encoder, buffer = Token("q7", text), msgspec.json.Encoder(), bytearray(8192)
    dumps = functools.partial(json.dumps, frame, ensure_ascii=False, separators=(",", ":"))
    return {
        "inferd": functools.partial(_fastpath.token_frame, PREFIX, text, SUFFIX),
        "inferd, plain Python": functools.partial(_purepath.token_frame, PREFIX, text, SUFFIX),
        "orjson": functools.partial(orjson.dumps, frame, option=orjson.OPT_APPEND_NEWLINE),
        "msgspec": functools.partial(encoder.encode_into, struct, buffer),
        "json": lambda: dumps().encode() + b"\n",
        "an empty call": functools.partial(id, None),
    }


@pytest.mark.parametrize("text", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("contestant", encoders(""))
def test_token_frame(benchmark: BenchmarkFixture, contestant: str, text: str) -> None:
    benchmark.extra_info["contestant"] = contestant
    benchmark.group = "token frame"
    benchmark.pedantic(encoders(text)[contestant], rounds=50, iterations=2000, warmup_rounds=1)


@pytest.mark.parametrize("text", TOKENS.values(), ids=TOKENS)
def test_all_make_the_same_frame(text: str) -> None:
    for contestant in ("inferd", "inferd, plain Python", "orjson", "json"):
        assert encoders(text)[contestant]() == PREFIX + orjson.dumps(text)[1:-1] + SUFFIX


# Splitting: 60 KB of received lines of equal length. memchr over the same bytes is the lower bound.

LENGTHS = {"lines of 100 B": 100, "lines of 4 KB": 4000, "one line of 60 KB": 60_000}
BYTES = 60_000


def splitting(impl: ModuleType, stream: bytes) -> Callable[[], int]:
    splitter = impl.LineSplitter(65536)

    def split() -> int:
        splitter.feed(stream)
        count = 0
        while splitter.next_line() is not None:
            count += 1
        return count

    return split


def memchr(stream: bytes) -> Callable[[], int]:
    search = ctypes.CDLL(None).memchr
    search.argtypes, search.restype = (ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_size_t
    clean = stream.replace(b"\n", b"x")
    return lambda: search(clean, 10, len(clean)) + 1


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("contestant", [*IMPLEMENTATIONS, "bytes.split", "memchr"])
def test_split(benchmark: BenchmarkFixture, contestant: str, length: int) -> None:
    stream = (b"x" * (length - 1) + b"\n") * (BYTES // length)
    if contestant in IMPLEMENTATIONS:
        split = splitting(IMPLEMENTATIONS[contestant], stream)
    else:
        split = memchr(stream) if contestant == "memchr" else lambda: len(stream.split(b"\n")) - 1
    benchmark.extra_info["contestant"] = contestant
    benchmark.extra_info["bytes"] = len(stream)
    benchmark.group = "split"
    assert split() == (1 if contestant == "memchr" else BYTES // length)
    benchmark.pedantic(split, rounds=50, iterations=20, warmup_rounds=1)
