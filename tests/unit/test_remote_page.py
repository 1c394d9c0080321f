"""docs/remote.md is correct: its configuration is read as documented, and its tables match the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.config import sources
from inferd.config.entries import BedrockEntry, OpenAICompatEntry
from inferd.config.keys import BACKEND_KEYS
from inferd.engine.events import Done
from inferd.engine.mock import Mock
from inferd.engine.remote import anthropic_answer, anthropic_request, bedrock, openai_request
from inferd.engine.remote.http import CONNECT_SECS, refusal
from inferd.engine.remote.openai_answer import Answer
from inferd.engine.requests import GenerateRequest, Message
from inferd.errors import BackendError, BackendInternal, InferdError, ToolCallMalformed, Unavailable
from inferd.sampling import NAMES
from inferd.serve.breaker import FAILURES, OPEN_SECS, WINDOW_SECS
from inferd.serve.surfaces.v1 import TextSurface
from inferd.serve.surfaces.v2 import BlockSurface
from inferd.wire import v1, v2
from tests.bedrock_server import answer
from tests.requests import generate_request

PAGE = (Path(__file__).parents[2] / "docs" / "remote.md").read_text("utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}
EVERY, OPENAI, BEDROCK = "Every server", "Servers with OpenAI's API", "AWS Bedrock"
HI = (Message("user", "hi"),)


def table(section: str, first: str) -> list[list[str]]:
    """The rows of the section's table whose first column has this heading."""
    text = SECTIONS[section]
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_configuration_is_read_as_documented(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)
    path = tmp_path / "config.json"
    path.write_text(shown)
    settings, notes = sources.load({"config": path}, {"HOME": str(tmp_path), "CLOUD_KEY": "k"})
    assert notes == []
    here, rack, cloud = settings.backends
    assert [here.name, rack.name, cloud.name] == ["here", "rack", "cloud"]
    assert isinstance(rack, OpenAICompatEntry)
    assert isinstance(cloud, BedrockEntry)
    assert cloud.bearer_token is not None


def test_the_command_lines_use_existing_flags() -> None:
    from inferd.config.settings import OPTIONS

    shown = set(re.findall(r"--(?:backend|openai|bedrock)[a-z-]*", PAGE))
    assert shown <= {option.flag for option in OPTIONS}
    assert len(shown) == 5
    for kind in re.findall(r"--backend ([a-z-]+)", PAGE):
        assert kind in BACKEND_KEYS


def test_the_numbers() -> None:
    assert f"established within {CONNECT_SECS:g} seconds" in PAGE
    for entry in (OpenAICompatEntry, BedrockEntry):
        default = entry._field_defaults["timeout_secs"]
        assert f"`timeout_secs` ({default:g})" in PAGE
    assert (FAILURES, WINDOW_SECS, OPEN_SECS) == (3, 60.0, 30.0)
    assert "After three failures within a minute an entry is skipped for half a minute" in PAGE
    assert f"the same; {anthropic_request.MAX_TOKENS} when absent" in PAGE
    room = anthropic_request.MIN_THINKING_TOKENS
    assert f"at least {room}; {room} more when `max_tokens` is absent" in PAGE


def statuses(*some: int) -> list[InferdError]:
    return [refusal("host", status, {}, b'{"message":"why"}') for status in some]


def read_nonsense() -> InferdError:
    with pytest.raises(BackendInternal) as caught:
        list(bedrock.Decoder().feed(b"nonsense" * 20))
    return caught.value


def call_nonsense() -> InferdError:
    reading = Answer("host", tool_required=False)
    piece = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "["}}
    chunk = json.dumps({"choices": [{"delta": {"tool_calls": [piece]}, "finish_reason": "tool_calls"}]})
    assert list(reading.feed(chunk)) == []
    with pytest.raises(ToolCallMalformed) as caught:
        list(reading.end())
    return caught.value


FAILURES_BY_ROW = {
    "refuses the request": lambda: statuses(400, 404, 405, 413, 422, 424),
    "401, 403": lambda: statuses(401, 403),
    "408, 429, 500 and above": lambda: statuses(408, 429, 500, 502, 503, 504, 529),
    "redirects": lambda: [*statuses(301, 302, 307, 308), Unavailable("silence, a cut, no connection")],
    "stops the answer with": lambda: [Unavailable("as the session says of every backend")],
    "sends a malformed answer": lambda: [read_nonsense()],
    "does not know the kind": lambda: statuses(501),
    "calls a tool": lambda: [call_nonsense()],
}


def test_failures_and_their_faults() -> None:
    rows = table(EVERY, "the server")
    assert len(rows) == len(FAILURES_BY_ROW)
    for what, code, counts in rows:
        (make,) = (make for start, make in FAILURES_BY_ROW.items() if what.startswith(start))
        for error in make():
            assert error.code == names(code)[0], what
            assert (isinstance(error, BackendError) and error.counts) == (counts == "yes"), what


def test_the_reason_for_a_refusal_goes_to_the_client_only() -> None:
    (refused,) = statuses(400)
    assert "why" in str(refused)
    assert refused.fault == "client"  # which keeps it out of the log
    for error in statuses(401, 429, 500):
        assert "why" in str(error)
        assert error.logged is not None
        assert "why" not in error.logged


# Names that are not wire fields, and fields that the tables describe in words.
NOT_IN_A_ROW = {
    "messages",
    "frame",
    "typed",
    "session",
    "lora",
    "scope",
    "cache",
    "priority",
    "model_defaults",
    "schema_lenient",
    "tool_name",
    "sampling",
}
SEEDED: dict[str, Any] = {
    "seed": 7,
    "min_p": 0.5,
    "repeat_penalty": 1.5,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
}


def told(section: str) -> set[str]:
    """The fields of a request that a section's table has."""
    cells = [row[0] for row in table(section, "field of the request") if "embedding" not in row[0]]
    return {name.partition(":")[0] for cell in cells for name in names(cell)} - {"response_format"}


@pytest.mark.parametrize("section", [OPENAI, BEDROCK])
def test_every_field_of_a_request_has_its_row(section: str) -> None:
    fields = set(GenerateRequest.__struct_fields__) | {*NAMES}
    assert told(section) == fields - NOT_IN_A_ROW


def test_fields_that_bedrock_lacks_are_not_sent() -> None:
    (row,) = (
        row for row in table(BEDROCK, "field of the request") if row[1].startswith("not sent: the API has no")
    )
    assert set(names(row[0])) == set(SEEDED)
    plain = anthropic_request.request_body(GenerateRequest(messages=HI))
    assert anthropic_request.request_body(generate_request(messages=HI, **SEEDED)) == plain


def test_fields_documented_as_the_same_reach_openai_unchanged() -> None:
    given = {**SEEDED, "max_tokens": 5, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "stop": ("x",)}
    said = json.loads(openai_request.chat("m", generate_request(messages=HI, **given), top_k=True))
    for what, becomes in table(OPENAI, "field of the request"):
        if becomes.startswith("the same"):
            for name in set(names(what)) & set(given):
                assert said[name] == (list(given[name]) if name == "stop" else given[name])
    absent = json.loads(openai_request.chat("m", GenerateRequest(messages=HI)))
    assert f"the same; {absent['max_tokens']} when absent on v1" in SECTIONS[OPENAI]
    assert "max_tokens" not in json.loads(openai_request.chat("m", GenerateRequest(messages=HI, typed=True)))


def ended(done: Done) -> tuple[str, str]:
    """The name of a stop reason on v1 and on v2."""
    text = TextSurface().writer(v1.parse(b'{"messages":[]}')).end(done, Mock(), None)
    blocks = BlockSurface().writer(v2.parse(b'{"messages":[]}')).end(done, Mock(), None)
    return json.loads(text)["stop_reason"], json.loads(blocks)["stop_reason"]


def of_bedrock(reason: str, _: bool) -> Done:
    reading = anthropic_answer.Answer(GenerateRequest(messages=HI))
    events = (json.dumps(event).encode() for event in answer(stop_reason=reason))
    (done,) = (event for data in events for event in reading.feed(data))
    assert isinstance(done, Done)
    return done


def of_openai(reason: str, calls: bool) -> Done:
    reading = Answer("host", tool_required=False)
    delta = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]} if calls else {}
    assert list(reading.feed(json.dumps({"choices": [{"delta": delta, "finish_reason": reason}]}))) == []
    *_, done = reading.end()
    assert isinstance(done, Done)
    return done


@pytest.mark.parametrize(
    ("section", "heading", "known", "read"),
    [
        (BEDROCK, "`stop_reason` of the server", set(anthropic_answer._STOP_REASONS), of_bedrock),
        (
            OPENAI,
            "`finish_reason` of the server",
            {"stop", "length", "tool_calls", "content_filter"},
            of_openai,
        ),
    ],
)
def test_the_reasons_of_an_end(
    section: str, heading: str, known: set[str], read: Callable[[str, bool], Done]
) -> None:
    rows = table(section, heading)
    assert {name for row in rows for name in names(row[0])} == known
    for there, on_v1, on_v2 in rows:
        for name in names(there):
            text, blocks = ended(read(name, not names(on_v1)))
            assert blocks == names(on_v2)[0]
            assert not names(on_v1) or text == names(on_v1)[0]
            for other in names(on_v2)[1:]:
                assert ended(read(name, True))[1] == other
