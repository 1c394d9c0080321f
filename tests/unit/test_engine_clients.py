"""Clients of an engine process that leave, do not read, or wait beside the preparation of another."""

from __future__ import annotations

import asyncio
import json
from typing import cast

from inferd.engine.events import Frames
from inferd.engine.local.child import messages as m
from inferd.engine.local.child.jobs import Job, JobQueue
from inferd.engine.local.child.process import EngineProcess, Receiver
from inferd.engine.requests import FrameTemplate, GenerateRequest, Message
from tests.in_process import until
from tests.requests import generate_request
from tests.unit.test_engine_process import ask, begin, finish, hosted

# Clients that leave, or do not read.


async def test_a_request_runs_until_the_process_is_done_with_it() -> None:
    async with hosted() as model:
        stream = await begin(model, ask())
        stream.close()
        assert len(model._jobs.running) == 1
        await until(lambda: not model._jobs.running)
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"


class Sent:
    """An engine process that does nothing. ``sent`` are the messages that it got."""

    running = True

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def submit(self, kind: int, body: bytes, fds: list[int], receiver: Receiver) -> int:
        self.sent.append((kind, len(self.sent) + 1))
        return len(self.sent)

    def tell(self, kind: int, job: int, body: bytes = b"") -> None:
        self.sent.append((kind, job))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def queue(process: Sent, limit: int) -> JobQueue:
    jobs = JobQueue(limit)
    jobs.serve(cast("EngineProcess", process))
    return jobs


async def test_the_next_request_is_sent_before_the_process_is_done_with_one_that_left() -> None:
    jobs = queue(process := Sent(), limit=1)
    first, second = (Job(jobs, ask(), alone=False) for _ in range(2))
    await first.begin()
    waiting = asyncio.create_task(second.begin())
    await settle()
    assert process.sent == [(m.GENERATE, 1)]
    first.leave()
    await settle()
    assert waiting.done()
    assert process.sent == [(m.GENERATE, 1), (m.DROP, 1), (m.GENERATE, 3)]


async def test_a_process_that_is_not_done_with_too_many_requests_gets_no_other() -> None:
    jobs = queue(process := Sent(), limit=2)
    left = [Job(jobs, ask(), alone=False) for _ in range(4)]
    for job in left:
        begun = asyncio.create_task(job.begin())
        await settle()
        assert begun.done()
        job.leave()
    waiting = [asyncio.create_task(Job(jobs, ask(), alone=False).begin()) for _ in range(2)]
    for ended in range(3):
        await settle()
        assert [task.done() for task in waiting] == [ended > 0, ended > 1]
        left[ended].take(m.GONE, b"", [])
    assert len(process.sent) == 10  # six requests, and four that left


async def test_a_suspect_waits_until_the_process_is_done_with_one_that_left() -> None:
    jobs = queue(Sent(), limit=2)
    left, suspect = Job(jobs, ask(), alone=False), Job(jobs, ask(), alone=True)
    await left.begin()
    left.leave()
    waiting = asyncio.create_task(suspect.begin())
    await settle()
    assert not waiting.done()
    left.take(m.GONE, b"", [])
    await settle()
    assert waiting.done()


async def test_a_reader_that_does_not_read_rests_and_another_is_served() -> None:
    frame = FrameTemplate(b"<" * 30_000, b">\n")
    async with hosted(n_parallel=2) as model:
        resting = await model.generate(
            generate_request(
                messages=(Message("user", "Count."),),
                max_tokens=200,
                grammar="root ::= [a-z]{2000}",
                frame=frame,
            )
        )
        assert isinstance(await anext(resting), Frames)
        assert (await finish(await model.generate(ask("Run.", max_tokens=8)))).stop_reason == "length"
        assert (await finish(resting)).usage.completion_tokens == 200


# Preparation.


def slow(text: str) -> GenerateRequest:
    """A request whose schema takes about a second to compile into a grammar."""
    names = [f"p{n}" for n in range(4000)]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    return generate_request(messages=(Message("user", text),), json_schema=json.dumps(schema), max_tokens=2)


async def test_a_bystander_does_not_wait_for_the_preparation_of_another() -> None:
    async with hosted(n_parallel=2) as model:
        other = asyncio.create_task(finish(await model.generate(slow("Slow."))))
        await until(lambda: len(model._jobs.running) == 1)
        assert (await finish(await model.generate(ask(max_tokens=1)))).stop_reason == "length"
        assert not other.done()
        other.cancel()


async def test_abandoned_preparations_are_no_more_than_the_sequences() -> None:
    async with hosted(n_parallel=2) as model:
        streams = [await model.generate(slow(f"Slow {n}.")) for n in range(6)]
        begun = [asyncio.create_task(anext(stream)) for stream in streams]
        await until(lambda: len(model._jobs.running) == 2)
        for task, stream in zip(begun, streams, strict=True):
            task.cancel()
            stream.close()
        # Waiting requests leave at once; the others run until the process confirms the end.
        assert len(model._jobs.running) == 2
        assert not model._jobs._queue
        assert (await finish(await model.generate(ask(max_tokens=1)))).stop_reason == "length"
