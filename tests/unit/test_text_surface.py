"""v1 requests in the form that the engine receives."""

from __future__ import annotations

from inferd.engine.requests import FrameTemplate, GenerateRequest, Message
from inferd.sampling import SamplingParams
from inferd.serve.surfaces.v1 import TextSurface
from inferd.wire import v1
from tests.requests import generate_request


def engine_request(line: bytes, template: FrameTemplate | None = None) -> GenerateRequest:
    return TextSurface().engine_request(v1.parse(line), template)


def test_absent_fields_are_left_to_the_backend() -> None:
    got = engine_request(b'{"messages":[{"role":"user","content":"hi"}]}')
    assert got == GenerateRequest(messages=(Message("user", "hi"),))
    assert (got.max_tokens, got.sampling) == (None, SamplingParams())


def test_null_is_not_given_and_zero_is() -> None:
    line = (
        b'{"messages":[{"role":"user","content":""}],"temperature":%s,"top_k":%s,"max_tokens":%s,"min_p":%s,'
        b'"repeat_penalty":%s}'
    )
    nulls = engine_request(line % ((b"null",) * 5))
    assert (nulls.max_tokens, nulls.sampling) == (None, SamplingParams())
    zeros = engine_request(line % ((b"0",) * 4 + (b"1.5",)))
    given = SamplingParams(temperature=0.0, top_k=0, min_p=0.0, repeat_penalty=1.5)
    assert (zeros.max_tokens, zeros.sampling) == (0, given)


def test_every_field_arrives() -> None:
    line = (
        b'{"messages":[{"role":"system","content":"a"},{"role":"assistant","content":"b"}],"temperature":0.5,'
        b'"top_p":0.5,"top_k":5,"max_tokens":7,"min_p":0.25,"repeat_penalty":1.25,"presence_penalty":-1,'
        b'"frequency_penalty":2,"seed":9,"stop":["x","y"],"json_schema":{"type":"object"},"session":"s"}'
    )
    frame = FrameTemplate(b"<", b">")
    assert engine_request(line, frame) == generate_request(
        messages=(Message("system", "a"), Message("assistant", "b")),
        max_tokens=7,
        temperature=0.5,
        top_p=0.5,
        top_k=5,
        min_p=0.25,
        repeat_penalty=1.25,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        seed=9,
        stop=("x", "y"),
        json_schema='{"type":"object"}',
        session="s",
        frame=frame,
    )
    assert engine_request(b'{"messages":[],"grammar":"root ::= \\"a\\""}').grammar == ('root ::= "a"')
