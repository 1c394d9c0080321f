"""docs/remote.md holds: its configuration is read as it says, and its tables are those of the code."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from inferd.config import sources
from inferd.config.entries import BedrockEntry, OpenAICompatEntry
from inferd.engine import anthropic, bedrock
from inferd.engine.backend import Done, GenerateRequest, Message
from inferd.engine.mock import Mock
from inferd.engine.openai_answer import Answer
from inferd.engine.remote import CONNECT_SECS, refusal
from inferd.errors import BackendError, BackendInternal, InferdError, ToolCallMalformed, Unavailable
from inferd.serve.blocks import BlockSurface
from inferd.serve.router import FAILURES, OPEN_SECS, WINDOW_SECS
from inferd.serve.text import TextSurface
from inferd.wire import v1, v2
from tests.bedrock_server import answer

PAGE = (Path(__file__).parents[2] / "docs" / "remote.md").read_text("utf-8")
HI = (Message("user", "hi"),)


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first column is headed so."""
    lines = PAGE[PAGE.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_configuration_means_what_it_says(tmp_path: Path) -> None:
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


def test_the_command_lines_have_the_flags_that_there_are() -> None:
    from inferd.config.settings import OPTIONS

    shown = set(re.findall(r"--(?:backend|openai|bedrock)[a-z-]*", PAGE))
    assert shown <= {option.flag for option in OPTIONS}
    assert len(shown) == 5
    for kind in re.findall(r"--backend ([a-z-]+)", PAGE):
        assert kind in (OpenAICompatEntry.kind, BedrockEntry.kind)


def test_the_numbers() -> None:
    assert f"stand within {CONNECT_SECS:g} seconds" in PAGE
    for entry in (OpenAICompatEntry, BedrockEntry):
        default = {field.name: field.default for field in dataclasses.fields(entry)}["timeout_secs"]
        assert f"`timeout_secs` ({default:g})" in PAGE
    assert (FAILURES, WINDOW_SECS, OPEN_SECS) == (3, 60.0, 30.0)
    assert "failed three times in a minute is left out for half a" in PAGE
    assert f"the same; {anthropic.MAX_TOKENS} when absent" in PAGE
    room = anthropic.MIN_THINKING_TOKENS
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
    "ends the answer without": lambda: [Unavailable("as the session says of every backend")],
    "sends what cannot be read": lambda: [read_nonsense()],
    "does not know the kind": lambda: statuses(501),
    "calls a tool": lambda: [call_nonsense()],
}


def test_failures_and_whose_they_are() -> None:
    rows = table("what the server does")
    assert len(rows) == len(FAILURES_BY_ROW)
    for what, code, counts in rows:
        (make,) = (make for start, make in FAILURES_BY_ROW.items() if what.startswith(start))
        for error in make():
            assert error.code == names(code)[0], what
            assert (isinstance(error, BackendError) and error.counts) == (counts == "yes"), what


def test_the_reason_for_a_refusal_is_the_clients_and_no_other() -> None:
    (refused,) = statuses(400)
    assert "why" in str(refused)
    assert refused.fault == "client"  # which keeps it out of the log
    assert [str(error) for error in statuses(401, 429, 500) if "why" in str(error)] == []


NOT_OF_THE_CLIENT = {"messages", "frame", "typed", "session", "tool_name", "thinking"}


def test_every_field_of_a_request_has_its_row() -> None:
    rows = table("a request's")
    told = {name for row in rows for name in names(row[0])} - {"thinking: true", "response_format"}
    assert told == {field.name for field in dataclasses.fields(GenerateRequest)} - NOT_OF_THE_CLIENT
    silent = next(names(row[0]) for row in rows if row[1].startswith("nothing: the API has no word"))
    changed = {"seed": 7, "min_p": 0.5, "repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 1}
    assert set(silent) == set(changed)
    plain = anthropic.request_body(GenerateRequest(messages=HI))
    assert anthropic.request_body(GenerateRequest(messages=HI, **changed)) == plain  # type: ignore[arg-type]


def test_the_reasons_of_an_end() -> None:
    rows = table("`stop_reason` there")
    assert {name for row in rows for name in names(row[0])} == set(anthropic._STOP_REASONS)
    text = TextSurface().writer(v1.parse(b'{"messages":[]}'))
    blocks = BlockSurface().writer(v2.parse(b'{"messages":[]}'))
    for there, on_v1, on_v2 in rows:
        for name in names(there):
            reading = anthropic.Answer(GenerateRequest(messages=HI))
            events = answer(stop_reason=name)
            (done,) = (event for data in events for event in reading.feed(json.dumps(data).encode()))
            assert isinstance(done, Done)
            assert [json.loads(blocks.end(done, Mock(), None))["stop_reason"]] == names(on_v2)
            if names(on_v1):
                assert [json.loads(text.end(done, Mock(), None))["stop_reason"]] == names(on_v1)
