"""Large requests give the same results as small ones, and other threads can run while they are parsed."""

from __future__ import annotations

import json
import sys
import threading
from base64 import b64encode
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd import _fastpath, _purepath
from inferd.errors import DecodeError, NotJson
from inferd.wire import long_texts, v1, v2
from tests.cases import cases

MARK = b"m" * 24
LONG = "é" * long_texts.LONG_BYTES
IMPLEMENTATIONS = pytest.mark.parametrize("impl", [_fastpath, _purepath], ids=["c", "python"])


@IMPLEMENTATIONS
class TestSetAside:
    def test_long_strings_leave_a_mark(self, impl: ModuleType) -> None:
        rest, texts = impl.set_aside(b'{"a":"1234","b":"12345","c":"\\u0041\\"\\n/\\/"}', 4, MARK)
        assert rest == b'{"a":"1234","b":"%b00000000","c":"%b00000001"}' % (MARK, MARK)
        assert texts == ["12345", 'A"\n//']

    def test_a_string_without_an_end_stays(self, impl: ModuleType) -> None:
        for line in (b'{"a":"12345', b'{"a":"12345\\"', b'{"a":"1234\\', b'"', b""):
            assert impl.set_aside(line, 4, MARK) == (line, [])

    @given(text=st.text(st.characters(codec="utf-8"), min_size=5), escaped=st.booleans())
    def test_any_text_comes_back(self, impl: ModuleType, text: str, escaped: bool) -> None:
        inside = json.dumps(text, ensure_ascii=escaped).encode()
        assert impl.set_aside(inside, 4, MARK)[1] == [text]

    @cases(
        "inside",
        [
            b"12345\x1f",
            b"12345\\x",
            b"12345\\u12g4",
            b"12345\\u123",
            b"12345\\ud83d",
            b"12345\\ud83dx",
            b"12345\\ud83d\\u0041",
            b"12345\\ude00",
            b"12345\xff",
            b"12345\xc3",
        ],
    )
    def test_non_strings_are_refused(self, impl: ModuleType, inside: bytes) -> None:
        with pytest.raises(ValueError, match=r"."):
            impl.set_aside(b'"' + inside + b'"', 4, MARK)

    @given(data=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
    def test_utf8_as_python_reads_it(self, impl: ModuleType, data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            assert not impl.is_utf8(data)
            with pytest.raises(ValueError, match=r"."):
                impl.decode_utf8(data)
        else:
            assert impl.is_utf8(data)
            assert impl.decode_utf8(data) == text

    def test_every_code_point(self, impl: ModuleType) -> None:
        for start in range(0, 0x110000, 0x800):
            text = "".join(map(chr, range(start, start + 0x800)))
            if start == 0xD800:
                assert not impl.is_utf8(text.encode("utf-8", "surrogatepass"))
            else:
                assert impl.decode_utf8(text.encode()) == text


@pytest.mark.parametrize(
    "work",
    [
        lambda data: _fastpath.set_aside(b'"%b"' % data, 1, MARK),
        _fastpath.decode_utf8,
        _fastpath.is_utf8,
    ],
    ids=["set_aside", "decode_utf8", "is_utf8"],
)
def test_another_thread_runs_meanwhile(work: Callable[[bytes], object]) -> None:
    data = "é".encode() * (1 << 20)
    begin, ran = threading.Lock(), []
    interval = sys.getswitchinterval()
    begin.acquire()
    other = threading.Thread(target=lambda: ran.append(begin.acquire()))
    other.start()
    try:
        sys.setswitchinterval(1e6)  # so the lock is given away only on purpose
        begin.release()
        for _ in range(2000):
            if ran:
                break
            work(data)
        assert ran
    finally:
        sys.setswitchinterval(interval)
        other.join()


def v2_line(**more: Any) -> bytes:
    blocks = [{"type": "text", "text": LONG}, {"type": "image", "attachment_id": "i"}]
    return json.dumps({"id": "q", "messages": [{"role": "user", "content": blocks}], **more}).encode()


CONTENT = bytes(range(256)) * 5
CALL = {"type": "tool_use", "tool_call_id": "c", "name": "f", "input": {"text": LONG, "n": [1.5, LONG]}}
RESULT = {"type": "tool_result", "tool_call_id": "c", "content": [{"type": "text", "text": LONG}]}


@cases(
    "line",
    [
        v2_line(
            attachments=[{"kind": "image", "id": "i", "mime": "x", "bytes": b64encode(CONTENT).decode()}]
        ),
        v2_line(
            tools=[{"name": "f", "description": LONG, "input_schema": {"title": LONG, "type": "object"}}]
        ),
        v2_line(json_schema={"description": LONG}, stop=["a", LONG], grammar=LONG, session=LONG),
        v2_line(messages=[{"role": "assistant", "content": [CALL]}, {"role": "user", "content": [RESULT]}]),
        v2_line(id=LONG, unknown={LONG: LONG}),
    ],
)
def test_a_large_request_is_read_as_a_small_one(line: bytes) -> None:
    large, small = long_texts.parse(v2.parse, memoryview(line)), v2.parse(line)
    for request in (large, small):  # as text two schemas may differ in their escapes
        request.json_schema = json.loads(bytes(request.json_schema) or "null")  # type: ignore[assignment]
        for tool in request.tools or ():
            tool.input_schema = json.loads(bytes(tool.input_schema))  # type: ignore[assignment]
        for message in request.messages:
            for block in message.content:
                if isinstance(block, v2.ToolUse):
                    block.input = json.loads(bytes(block.input))
    assert large == small


def test_content_of_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "_BASE64_STEP", 400)
    for size in (298, 299, 300, 301, 601):
        text = b64encode((CONTENT * 2)[:size]).decode()
        line = v2_line(attachments=[{"kind": "image", "id": "i", "mime": "x", "bytes": text}])
        (attachment,) = long_texts.parse(v2.parse, line).attachments or ()
        assert not isinstance(attachment, v2.attachments.Unknown)
        assert attachment.content == (CONTENT * 2)[:size]


@pytest.mark.parametrize("at", [10, 400, 799, 1000, -1])
def test_content_that_is_not_base64_is_refused(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "_BASE64_STEP", 400)
    text = bytearray(b64encode(CONTENT[:1000]))
    text[at : at + 1 or None] = b"*" if at > 0 else b"B"
    line = v2_line(attachments=[{"kind": "image", "id": "i", "mime": "x", "bytes": text.decode()}])
    with pytest.raises(DecodeError, match="base64"):
        long_texts.parse(v2.parse, line)


def test_an_error_names_the_id_of_the_request() -> None:
    line = json.dumps({"id": LONG, "messages": "none"}).encode()
    with pytest.raises(DecodeError) as caught:
        long_texts.parse(v1.parse, line)
    assert caught.value.request_id == LONG


@pytest.mark.parametrize("line", [b'{"id":"' + LONG.encode() + b'\xff"}', b'{"id":"' + LONG.encode()])
def test_invalid_json_is_refused(line: bytes) -> None:
    with pytest.raises(NotJson):
        long_texts.parse(v1.parse, line)


def test_the_rest_of_the_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"messages": [{"role": "user", "content": LONG}], "x": [1] * 1000}).encode()
    assert long_texts.parse(v1.parse, line).messages[0].content == LONG
    monkeypatch.setattr(long_texts, "MAX_REST_BYTES", 1000)
    with pytest.raises(DecodeError, match="more than 1000 bytes beside its long texts"):
        long_texts.parse(v1.parse, line)
