"""The v2 request parser: any line gives a request, a DecodeError or an InvalidRequest."""

from __future__ import annotations

import base64
import json
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from inferd.errors import AttachmentTooLarge, AttachmentUnsupported, DecodeError, InferdError, InvalidRequest
from inferd.serve.surfaces.v2 import BlockSurface
from inferd.wire import attachments, v2, v2_rules
from tests.fuzz.lines import damaged, line_of, outcome

CAP = 1000
KINDS = {"text", "image", "audio", "thinking", "tool_use", "tool_result"}
KEYS = sorted(v2.Request.__struct_fields__)


def check(data: bytes) -> None:
    """Parses one line, as the splitter would pass it on, and converts it to the engine's request."""
    line = data.replace(b"\n", b" ")
    request = outcome(v2.parse, memoryview(line))
    if isinstance(request, InferdError):
        assert isinstance(request, DecodeError)
        assert str(request).startswith("decode: ")
        refused(request.request_id, request)
        return
    seen = json.loads(line.decode(), parse_int=str, parse_float=str)
    assert request.id == seen.get("id", "")
    assert len(request.messages) == len(seen["messages"])
    size = outcome(raw_size, request)
    if isinstance(size, InferdError):
        assert isinstance(size, AttachmentTooLarge)
        refused(request.id, size)
        return
    assert size == 0 or v2.may_carry_raw(line)
    attachments.assign(request.attachments or (), memoryview(bytes(size)))
    problem = outcome(v2_rules.validate, request)
    if problem is None:
        accepted(request, seen)
    else:
        assert isinstance(problem, InvalidRequest | AttachmentUnsupported)
        assert not isinstance(problem, DecodeError)
        refused(request.id, problem)


def raw_size(request: v2.Request) -> int:
    return attachments.raw_size(request.attachments or (), CAP)


def refused(request_id: str, error: InferdError) -> None:
    """The error frame can be written, on one line."""
    frame = v2.encode_error(request_id, error.code, str(error))
    assert frame.count(b"\n") == 1
    assert orjson.loads(frame)["message"] == str(error)


def accepted(request: v2.Request, seen: dict[str, Any]) -> None:
    """The engine's request equals the result of an independent parser, and satisfies the rules."""
    surface = BlockSurface()
    engine = surface.engine_request(request, surface.writer(request).template)
    assert surface.needs(request) >= {"v2"}
    blocks = [block for message in seen["messages"] for block in message["content"]]
    assert {block["type"] for block in blocks} <= {
        "text",
        "image",
        "audio",
        "thinking",
        "tool_use",
        "tool_result",
    }
    calls = [call for message in engine.messages for call in message.tool_calls]
    uses = [block for block in blocks if block["type"] == "tool_use"]
    assert [call.id for call in calls] == [use["tool_call_id"] for use in uses]
    assert len({call.id for call in calls}) == len(calls)
    results = [message.tool_call_id for message in engine.messages if message.role == "tool"]
    assert set(results) <= {call.id for call in calls}
    assert len({tool.name for tool in engine.tools}) == len(engine.tools)
    for text in (*(call.arguments for call in calls), *(tool.schema for tool in engine.tools)):
        assert text.startswith("{")
    for attachment in request.attachments or ():
        if isinstance(attachment, attachments.Image) and attachment.mime is None:
            assert len(attachment.content) == (attachment.width or 0) * (attachment.height or 0) * 3
    if engine.grammar or engine.json_schema:
        assert not engine.tools or engine.tool_choice == "none"


IDS = st.sampled_from(["a", "b", "c", ""])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 3, 2**32, 2**64, CAP, CAP + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["user", "assistant", "required", "none", "json_object"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
BASE64 = st.binary(max_size=6).map(lambda data: base64.b64encode(data).decode())


def objects(**fields: Any) -> Any:
    """Objects with these fields; sometimes one of them has an arbitrary value."""
    return st.fixed_dictionaries(
        {name: st.one_of(*[value] * 9, VALUES) if name != "type" else value for name, value in fields.items()}
    )


LEAVES = st.one_of(
    objects(type=st.just("text"), text=st.text(max_size=8)),
    objects(type=st.sampled_from(["text", "image", "audio", "video"]), attachment_id=IDS),
    objects(type=st.just("thinking"), text=st.text(max_size=8)),
    objects(
        type=st.just("tool_use"), tool_call_id=IDS, name=st.just("f"), input=st.dictionaries(IDS, SCALARS)
    ),
    objects(type=st.text(max_size=5)),
)
BLOCKS = st.recursive(
    LEAVES,
    lambda inner: objects(type=st.just("tool_result"), tool_call_id=IDS, content=st.lists(inner, max_size=2)),
    max_leaves=4,
)
MESSAGES = st.lists(
    objects(role=st.sampled_from(["user", "assistant", "system"]), content=st.lists(BLOCKS, max_size=3)),
    max_size=3,
)
ATTACHMENTS = st.lists(
    st.one_of(
        objects(kind=st.just("image"), id=IDS, width=st.just(1), height=st.just(1), bytes=st.just("AAAA")),
        objects(
            kind=st.sampled_from(["image", "audio", "text", "video", "x"]), id=IDS, size=st.integers(0, 9)
        ),
        objects(kind=st.just("audio"), id=IDS, sample_rate=st.just(8000), bytes=BASE64),
        objects(kind=st.just("text"), id=IDS, bytes=BASE64),
    ),
    max_size=3,
)
TOOLS = st.lists(
    objects(name=IDS, description=st.just(""), input_schema=st.dictionaries(IDS, SCALARS)), max_size=2
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Near-valid requests: keys of ours with any value, sometimes twice."""
    members: list[tuple[str, Any]] = [("messages", draw(MESSAGES))]
    for key, values in (("attachments", ATTACHMENTS), ("tools", TOOLS)):
        if draw(st.booleans()):
            members.append((key, draw(values)))
    members += draw(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=2))
    return line_of(draw, members)


@given(line=lines())
def test_near_valid_v2_requests(line: bytes) -> None:
    check(line)


@given(line=damaged(lines()))
def test_damaged_v2_requests(line: bytes) -> None:
    check(line)


RESULT = b'[{"type":"tool_result","tool_call_id":"c","content":'


@given(data=st.binary(max_size=200))
@example(data=b'{"messages":' + b"[" * 60_000)
@example(data=b'{"messages":[{"role":"user","content":' + RESULT * 2000 + b"[]" + b"}]" * 2000 + b"}]}")
@example(data=b'{"messages":[{"role":"user","content":' + RESULT * 300 + b"[]" + b"}]" * 300 + b"}]}")
@example(
    data=b'{"messages":[{"role":"user","content":[{"type":"x","y":' + b"[" * 9000 + b"]" * 9000 + b"}]}]}"
)
@example(data=b'{"messages":[],"attachments":[{"kind":"x","size":' + b"9" * 5000 + b"}]}")
@example(data=b'{"messages":[],"attachments":[{"kind":"text","id":"","bytes":"\\u0041A=="}]}')
def test_arbitrary_v2_bytes(data: bytes) -> None:
    check(data)
