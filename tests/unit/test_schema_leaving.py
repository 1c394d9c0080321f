"""If a client leaves, the work on its schema or grammar ends: validation, compilation and masks."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from inferd.engine.events import Frames
from inferd.engine.local import _llama
from inferd.engine.local.child.host import _Job as Job
from inferd.engine.local.conversation import NOTHING, prepare
from inferd.engine.local.schema import family_guides, notations, schema_check, schema_places
from inferd.engine.local.schema.family_repairs import repaired
from inferd.engine.local.suggested import DEFAULTS
from inferd.engine.requests import GenerateRequest
from inferd.errors import InvalidRequest
from tests.daemon_process import PATIENCE_SECS
from tests.in_process import until
from tests.unit.test_conversation import TEMPLATES, WEATHER, request
from tests.unit.test_family_calls import family
from tests.unit.test_llamacpp import ask, backend, load, read
from tests.unit.test_schemas import guides, hold, hold_tool, properties

ANY_TEXT = "%llguidance {}\nstart: /(?s:.*)/"
WORDS = properties(**{f"word_{i}": {"type": "string", "maxLength": 40} for i in range(40)})


def test_a_client_that_leaves_ends_the_work_on_its_schema() -> None:
    schema = properties(a={"type": "string", "pattern": "^of a client that leaves$"})
    left = _llama.Cancellation()
    left.cancel()
    for work in (hold, hold_tool):
        with left, pytest.raises(InvalidRequest, match="its client has left"):
            work(schema)
        assert work(schema).dropped == ()  # the next client is not affected


def test_a_client_that_leaves_ends_the_work_before_the_next_compilation() -> None:
    left = _llama.Cancellation()
    left.cancel()
    with left, pytest.raises(InvalidRequest, match="its client has left"):
        guides().grammar(ANY_TEXT)


def test_a_schema_that_takes_long_lets_another_in() -> None:
    """The other schema waits for its turn, and is read before the first one is ready."""
    text = json.dumps(properties(a={"type": "string"}))
    read_by_other = threading.Event()
    other = threading.Thread(target=lambda: (schema_check.read(text), read_by_other.set()))
    with schema_check._turn:
        other.start()
        end = time.monotonic() + PATIENCE_SECS
        while not read_by_other.is_set() and time.monotonic() < end:
            schema_check._turn.poll()
        assert read_by_other.is_set()
    other.join()


def test_a_client_that_leaves_while_its_schema_waits_for_its_turn_gets_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, refused = _llama.Cancellation(), []
    monkeypatch.setattr(schema_check, "parse", None)  # to parse the schema would be an error

    def read_it() -> None:
        with left, pytest.raises(InvalidRequest, match="its client has left") as error:
            schema_check.read("{}")
        refused.append(error)

    reader = threading.Thread(target=read_it)
    with schema_check._turn:
        reader.start()
        left.cancel()
    reader.join()
    assert refused
    monkeypatch.undo()
    assert schema_check.read("{}") == {}  # the turn is free again


@pytest.mark.parametrize("walk", [schema_places.count, schema_places.nodes, schema_places.schemas])
def test_a_walk_through_a_schema_ends_when_its_client_leaves(walk: Callable[[Any], Any]) -> None:
    left = _llama.Cancellation()
    left.cancel()
    with left, pytest.raises(InvalidRequest, match="its client has left"):
        next(walk({}))


@pytest.mark.parametrize("end", [Job.drop, Job.cancel])
async def test_the_end_of_a_job_reaches_its_preparation_before_the_event_loop_runs_again(
    end: Callable[[Job], None],
) -> None:
    job = Job(asyncio.get_running_loop())
    job.task = asyncio.ensure_future(asyncio.sleep(PATIENCE_SECS))
    with job.cancellation:
        _llama.stop_if_cancelled()
        end(job)
        with pytest.raises(InvalidRequest, match="its client has left"):
            _llama.stop_if_cancelled()
    await asyncio.wait((job.task,))


@pytest.mark.parametrize(
    "draft", ["draft-04/schema#", "draft-07/schema#", "draft/2019-09/schema", "draft/2020-12/schema"]
)
def test_a_client_that_leaves_ends_the_validation_of_its_schema(draft: str) -> None:
    home = "http://json-schema.org/" if "/schema#" in draft else "https://json-schema.org/"
    text = json.dumps({"$schema": home + draft, "properties": {"a": {"properties": {"b": {}}}}})
    left = _llama.Cancellation()
    left.cancel()
    with left, pytest.raises(InvalidRequest, match="its client has left"):
        schema_check.read(text)
    assert "properties" in schema_check.read(text)


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5-7B-Instruct", "google-gemma-4-31B-it"])
def test_a_client_that_leaves_ends_the_work_on_the_format_of_its_calls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tools=(WEATHER,), tool_choice="required", thinking=False)
    of_family = family(TEMPLATES / f"{name}.jinja")
    prepared = prepare(of_family, asked)
    syntax, left = repaired(prepared.prompt.syntax), _llama.Cancellation()
    left.cancel()
    monkeypatch.setattr(notations, "alternatives", None)  # to look for alternatives would be an error
    with left, pytest.raises(InvalidRequest, match="its client has left"):
        family_guides.calls(of_family.guides, prepared.prompt, syntax, prepared.tools, required=True)


def test_a_guide_stops_when_the_client_of_its_preparation_leaves() -> None:
    guide, begun, left = guides().grammar(ANY_TEXT), threading.Event(), _llama.Cancellation()
    given_up = threading.Event()

    def read_on() -> None:
        with left:
            while guide.accept_text(b"a text without an end ") and not given_up.is_set():
                begun.set()

    reader = threading.Thread(target=read_on)
    reader.start()
    assert begun.wait(PATIENCE_SECS)
    left.cancel()
    reader.join(PATIENCE_SECS)
    given_up.set()
    assert guide.stopped
    assert guide.choices() == 0
    assert not guide.complete  # which would be an answer's end
    assert not guides().grammar(ANY_TEXT).stopped


def test_a_guide_that_waits_for_a_call_stops_too() -> None:
    guide, left = guides().grammar('%llguidance {}\nstart: "<call>" /[a-z]+/'), _llama.Cancellation()
    guide.wait_for([b"<call>"], [])
    assert guide.allows(100)
    left.cancel()
    with left:
        guide.accept_text(b"<call>")
    assert guide.stopped
    assert not guide.allows(100)


async def test_a_client_that_leaves_ends_the_preparation_of_its_request(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, told = threading.Event(), threading.Event()

    def endless(request: GenerateRequest) -> None:
        begun.set()
        end = time.monotonic() + PATIENCE_SECS
        try:
            while time.monotonic() < end:
                _llama.stop_if_cancelled()
        except InvalidRequest:
            told.set()
            raise
        raise InvalidRequest("nothing told it of the cancel")

    engine = await asyncio.to_thread(load, tiny_llama)
    await engine.start()
    monkeypatch.setattr(engine, "_prepare", endless)
    asked = asyncio.create_task(engine.generate(ask("Why?")))
    await asyncio.to_thread(begun.wait)
    asked.cancel()
    await asyncio.wait((asked,))
    await engine.close()
    assert asked.cancelled()
    assert told.is_set()


async def test_no_preparation_begins_for_a_client_that_has_left(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await asyncio.to_thread(load, tiny_llama)
    await engine.start()
    monkeypatch.setattr(engine, "_prepare", None)  # to prepare the request would be an error
    left = _llama.Cancellation()
    left.cancel()
    with pytest.raises(InvalidRequest, match="its client has left"):
        await engine.generate(ask("Why?"), left)
    await engine.close()


async def test_an_answer_is_dropped_when_its_client_left_during_its_preparation(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, left, jobs = threading.Event(), threading.Event(), []

    def slow(request: GenerateRequest) -> Any:
        answer = prepare_really(request)
        jobs.append(answer[0])
        begun.set()
        left.wait()
        return answer

    engine = await asyncio.to_thread(load, tiny_llama)
    await engine.start()
    prepare_really: Any = engine._prepare
    monkeypatch.setattr(engine, "_prepare", slow)
    asked = asyncio.create_task(engine.generate(ask("Why?", 5)))
    await asyncio.to_thread(begun.wait)
    asked.cancel()
    left.set()
    await asyncio.wait((asked,))
    await until(lambda: engine.pulse().busy_ms == 0)
    rest = engine._engine.collect(jobs[0])
    await engine.close()
    assert asked.cancelled()
    assert rest == (b"", None)


async def test_a_cancelled_job_stops_its_guide_at_once(tiny_llama: Path) -> None:
    """A cancel before the loop runs: otherwise the loop would notice it only after its step."""
    engine = await asyncio.to_thread(load, tiny_llama)
    family = engine._family
    prompt = family.prompt(ask("Why?"), NOTHING, thinking=False)
    stopped = []
    for drop in (False, True):
        guide = family.guides.grammar(ANY_TEXT)
        job = engine._engine.submit(
            prompt,
            max_tokens=5,
            sampling=replace(DEFAULTS, seed=1),
            grammar=b"",
            stops=[],
            frame=None,
            guide=guide,
        )
        assert not guide.stopped
        engine._engine.cancel(job, drop)
        stopped.append(guide.stopped)
    await engine.close()
    assert stopped == [True, True]


async def test_an_answer_cancelled_within_its_grammar_is_cancelled_and_not_refused() -> None:
    """Most cancels here arrive while a mask is computed."""
    async with backend() as engine:
        for _ in range(8):
            asked = ask("Invent words.", 600, temperature=1.0, json_schema=json.dumps(WORDS))
            stream = await engine.generate(asked)
            assert isinstance(await anext(stream), Frames)
            stream.cancel()
            _, done = await read(stream)
            assert done.stop_reason == "cancelled"


async def test_a_grammar_of_the_client_is_not_matched_any_further() -> None:
    """Without a cancel this schema reaches its limit of processor time, and is refused."""
    async with backend() as engine:
        stream = await engine.generate(ask("Hi", grammar='root ::= ("a"?){400}'))
        await until(lambda: engine.pulse().busy_ms > 100)
        stream.cancel()
        _, done = await read(stream)
        assert done.stop_reason == "cancelled"
