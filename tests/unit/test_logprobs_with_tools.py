"""The probabilities of an answer's text beside tool calls, in the format of every vendored template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from inferd.engine.backend import Stream
from inferd.engine.events import Done, Event, Frames, Text, ToolUse, Usage
from inferd.engine.local import generic_tools
from inferd.engine.local.conversation import Reader, prepare
from inferd.engine.local.streams.typed_stream import TypedStream, raw_frames
from inferd.engine.requests import FrameTemplate, GenerateRequest
from tests.cases import cases
from tests.demo_model import demo_model
from tests.unit.test_conversation import ANSWERS, CALL, TEMPLATES, WEATHER, request
from tests.unit.test_conversation_model import collect
from tests.unit.test_family_calls import family, thought
from tests.unit.test_llamacpp import backend
from tests.unit.test_logprobs import text_of, tokens_of

FRAME = FrameTemplate(b'{"t":"', b"]}\n", b'","p":[')
WORDS = "Größe 1, 日本."
# The mark with which a text begins, in families that need one.
MARKS = {
    "Cohere2MoE": "<|START_TEXT|>",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|START_RESPONSE|>",
    "meetkai-functionary-medium-v3.2": "all\n",
    "muse-glimmer": "<|message|>",
    "openai-gpt-oss-120b": "<|channel|>final<|message|>",
}


def asked(**options: Any) -> GenerateRequest:
    return request(tools=(WEATHER,), logprobs=0, **options)


def texts(reader: Reader, pieces: list[str]) -> Iterator[tuple[str, bytes]]:
    """Each text that a reader finds, and the bytes of the answer at its places."""
    answer = "".join(pieces).encode()
    for number, piece in enumerate(pieces, 1):
        for event in reader.feed(piece, last=number == len(pieces)) or ():
            if isinstance(event, Text):
                yield event.text, b"".join(answer[begin:end] for begin, end in reader.places)


@cases("path", sorted(TEMPLATES.glob("*.jinja")))
def test_a_text_stands_at_its_places(path: Path) -> None:
    prepared = prepare(family(path), asked())
    answer = thought(prepared) + MARKS.get(path.stem, "") + WORDS + ANSWERS.get(path.stem, "")
    assert prepared.reader is not None
    found = list(texts(prepared.reader, list(answer)))
    assert "".join(shown for shown, _ in found).startswith(WORDS)
    for shown, at_its_places in found:
        assert shown.encode() == at_its_places


def record(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}


class Tokens(Stream):
    """An answer of given tokens, each in a frame of its own, with a last record that has no text."""

    def __init__(self, tokens: list[str], frame: FrameTemplate) -> None:
        frames = [
            frame.prefix
            + orjson.dumps(token)[1:-1]
            + frame.opening
            + orjson.dumps(record(token))
            + frame.suffix
            for token in tokens
        ]
        end = Done("end", Usage(1, len(tokens)), content=b"x", logprobs=orjson.dumps(record("<end>")))
        self._events: list[Event] = [Frames(frames[0]), Frames(b"".join(frames[1:])), end]

    async def __anext__(self) -> Event:
        return self._events.pop(0)

    def cancel(self) -> None: ...

    def close(self) -> None: ...


async def typed(tokens: list[str], request: GenerateRequest) -> tuple[list[Event], Done]:
    reader = generic_tools.Reader(required=False)
    with ThreadPoolExecutor(1) as pool:
        stream = TypedStream(Tokens(tokens, raw_frames(request)), reader, pool, request)
        events = []
        while not isinstance(event := await anext(stream), Done):
            events.append(event)
    return events, event


async def test_the_tokens_of_a_call_are_not_reported() -> None:
    text, call = ["Größe", " <tool", "s>: ", '"\t\n'], [*generic_tools.MARKER, *CALL]
    events, done = await typed([*text, *call], asked(frame=FRAME))
    *frames, use = events
    assert isinstance(use, ToolUse)
    told = [
        json.loads(line) for each in frames if isinstance(each, Frames) for line in each.data.splitlines()
    ]
    assert "".join(frame["t"] for frame in told) == "".join(text)
    assert tokens_of(told, done) == [record(token) for token in text]


async def test_without_frames_they_come_with_the_end() -> None:
    text, call = ["One", " two."], [*generic_tools.MARKER, *CALL]
    events, done = await typed([*text, *call], asked(frame=None))
    assert [type(event) for event in events] == [Text, Text, ToolUse]
    assert tokens_of([], done) == [record(token) for token in text]
    _, done = await typed(call, asked(frame=None))
    assert done.logprobs == b""


async def test_an_answer_of_a_model() -> None:
    async with backend(demo_model()) as engine:
        events, done = await collect(engine, asked(max_tokens=8, frame=FRAME))
        frames = [
            json.loads(line) for each in events if isinstance(each, Frames) for line in each.data.splitlines()
        ]
        tokens = tokens_of(frames, done)
        assert len(tokens) == 8
        assert text_of(tokens) == "".join(frame["t"] for frame in frames).encode()
        events, done = await collect(engine, asked(tool_choice="required", frame=FRAME))
        assert [type(event) for event in events] == [ToolUse]
        assert done.logprobs == b""
