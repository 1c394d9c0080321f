"""The metrics of requests, and their snapshot."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferd.engine.backend import Stream
from inferd.engine.events import Frames
from inferd.engine.mock import Mock, MockStream
from inferd.engine.requests import GenerateRequest
from inferd.errors import InvalidRequest, Unavailable
from inferd.fastpath import token_frame
from inferd.serve.breaker import FAILURES
from inferd.serve.observe.metrics import KEPT, Histogram, quantile
from inferd.serve.surfaces import generation
from inferd.serve.surfaces.vectors import EmbedSurface
from tests.cases import cases
from tests.in_process import Gate, ask, serving, until
from tests.observed import Measuring, seen

# Numbers.


def test_a_histogram_bound_is_inclusive() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 7.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 2, 1], 11.5)


@cases(
    "values, share, value",
    [
        ([], 0.5, None),
        ([10.69], 0.5, 10.69),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 30.0], 0.5, 2.0),
        ([1.0, 2.0, 30.0], 0.99, 30.0),
    ],
)
def test_a_quantile_is_one_of_the_values(values: list[float], share: float, value: float | None) -> None:
    assert quantile(values, share) == value


def test_quantiles_are_of_recent_values() -> None:
    histogram = Histogram((10.0, 20.0))
    for _ in range(KEPT):
        histogram.observe(3.0)
    for _ in range(KEPT):
        histogram.observe(10.69)
    summary = histogram.summary()
    assert (summary["p50"], summary["p99"], summary["count"]) == (10.69, 10.69, 2 * KEPT)


# Requests.


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


class _Framing(Mock):
    """A mock that returns its whole tape as frames at once, and ends when the test says so."""

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.end = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> Stream:
        stream = _FramingStream(self, request)
        self.open_streams.add(stream)
        return stream


class _FramingStream(MockStream):
    def __init__(self, backend: _Framing, request: GenerateRequest) -> None:
        super().__init__(backend, request)
        self._frame = request.frame
        self._end = backend.end

    async def __anext__(self) -> Any:
        data = b""
        while self._frame is not None and self._sent < len(self._tokens):
            event = await super().__anext__()
            data += token_frame(self._frame.prefix, event.text, self._frame.suffix)
        if data:
            return Frames(data)
        await self._end.wait()
        return await super().__anext__()


async def test_an_answered_request(path: Path) -> None:
    async with serving(path, Measuring("m", tape=["a", "b", "c"])) as server:
        client = await server.connect()
        await client.send(ask())
        while (await client.frame())["type"] != "done":
            pass
        metrics = seen(server)["metrics"]
    surface, backend = metrics["surfaces"]["v1"], metrics["backends"]["m"]
    assert (surface["connections"], surface["connections_open"], surface["done"]) == (1, 1, 1)
    assert (surface["errors"], surface["cancels"]) == ({}, {})
    assert surface["queue_wait_seconds"]["count"] == 1
    tokens = [backend[name] for name in ("prompt_tokens", "completion_tokens", "cached_tokens")]
    assert tokens == [30, 3, 10]
    counts = {name: value["count"] for name, value in backend.items() if name.endswith("_seconds")}
    assert counts == {"time_to_first_token_seconds": 1, "inter_token_seconds": 2}
    assert backend["prefill_tokens_per_second"]["sum"] == pytest.approx(2000)
    assert backend["decode_tokens_per_second"]["sum"] == 75
    assert server.service.metrics.surfaces["v1"].connections_open == 0
    assert backend["decode_tokens_per_second"]["p50"] == 75


async def test_a_prompt_that_was_given_up_has_no_speed(path: Path) -> None:
    async with serving(path, Measuring("m", tape=[])) as server:
        client = await server.connect()
        await client.send(ask())
        assert (await client.frame())["type"] == "done"
        backend = seen(server)["metrics"]["backends"]["m"]
    assert (backend["prompt_tokens"], backend["prefill_tokens_per_second"]["count"]) == (30, 0)


async def test_frames_that_come_together_are_as_many_tokens(path: Path) -> None:
    """A backend with its own fast path hands over all gathered tokens at once."""
    backend = _Framing(tape=["a", "b"])
    async with serving(path, backend) as server:
        client = await server.connect()
        await client.send(ask())
        assert [(await client.frame())["content"] for _ in range(2)] == ["a", "b"]
        (row,) = seen(server)["running"]
        assert row["tokens"] == 2
        backend.end.set()
        assert (await client.frame())["type"] == "done"


async def test_the_time_of_a_reader_is_not_the_time_of_the_backend(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gap between two chunks is counted from the moment the client had read the first."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(generation, "time", SimpleNamespace(monotonic=lambda: clock.now))
    gate = Gate()
    async with serving(path, Mock(tape=["x" * 4_000_000, "b"], pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        gate.open()
        (session,) = server.service.sessions
        await until(lambda: session._conn.blocked)
        clock.now = 100.0  # the time of the client
        assert json.loads(await client.line())["type"] == "token"
        gate.open(2)
        assert json.loads(await client.line())["type"] == "token"
        metrics = seen(server)["metrics"]["backends"]["mock"]
        assert metrics["inter_token_seconds"]["sum"] == 0
        await client.line()


async def test_refusals_and_invalid_requests_are_errors_by_code(path: Path) -> None:
    async with serving(path, queue_depth=0) as server:
        client = await server.connect()
        with await server.admission.of("mock").admit("another"):
            await client.send(ask())
            assert (await client.frame())["code"] == "queue_full"
        await client.send({"id": "q", "messages": []})
        assert (await client.frame())["code"] == "invalid_request"
        await client.send(b"x\n")
        assert (await client.frame())["code"] == "invalid_request"
        surface = seen(server)["metrics"]["surfaces"]["v1"]
        assert surface["errors"] == {"queue_full": 1, "invalid_request": 2}
        assert surface["done"] == 0


async def test_backend_failures_count_for_the_backend_and_its_breaker(path: Path) -> None:
    async with serving(path, Mock("broken", error=Unavailable("no"))) as server:
        client = await server.connect()
        for _ in range(FAILURES + 1):
            await client.send(ask())
            assert (await client.frame())["code"] == "backend_unavailable"
        report = seen(server)
        assert report["metrics"]["backends"]["broken"]["errors"] == {"backend_unavailable": FAILURES}
        # A request that reached no backend is an error of the surface alone.
        assert report["metrics"]["surfaces"]["v1"]["errors"] == {"backend_unavailable": FAILURES + 1}
        assert [(row["name"], row["breaker"], row["ready"]) for row in report["backends"]] == [
            ("broken", "open", True)
        ]


async def test_a_refusal_of_a_backend_is_not_its_failure(path: Path) -> None:
    async with serving(path, Mock(error=InvalidRequest("no"))) as server:
        client = await server.connect()
        await client.send(ask())
        assert (await client.frame())["code"] == "invalid_request"
        assert seen(server)["metrics"]["backends"]["mock"]["errors"] == {}


async def test_the_longest_running_requests_come_first(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate), active_permits=5) as server:
        clients = [await server.connect() for _ in range(5)]
        for number, client in enumerate(clients):
            await client.send(ask(str(number)))
            await until(lambda: server.admission.running == number + 1)  # noqa: B023
        assert [row["id"] for row in seen(server)["running"]] == list("01234")
        gate.open(10)
        for client in clients:
            assert await client.line()


async def test_an_unexpected_error_is_counted(path: Path) -> None:
    class Odd(Mock):
        async def generate(self, request: GenerateRequest) -> Stream:
            raise ZeroDivisionError

    async with serving(path, Odd()) as server:
        client = await server.connect()
        await client.send(ask())
        assert (await client.frame())["code"] == "internal"
        assert seen(server)["metrics"]["backends"]["mock"]["errors"] == {"internal": 1}


async def test_early_ends_are_counted_by_their_reason(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(pace=gate)) as server:
        leaving = await server.connect()
        await leaving.send(ask())
        await until(lambda: gate.waiting == 1)
        leaving.close()
        await until(lambda: server.admission.running == 0)
        late = await server.connect()
        await late.send(ask(deadline_ms=1))
        assert (await late.frame())["stop_reason"] == "cancelled"
        stopped = await server.connect()
        await stopped.send(ask())
        await until(lambda: gate.waiting == 1)
        server.service.interrupt()
        assert (await stopped.frame())["stop_reason"] == "cancelled"
        surface = seen(server)["metrics"]["surfaces"]["v1"]
        left = surface["cancels"].pop("hang-up", 0) + surface["cancels"].pop("closed", 0)
        assert left == 1
        assert surface["cancels"] == {"deadline": 1, "stop": 1}
        assert (surface["done"], surface["errors"]) == (0, {})


async def test_vectors_count_their_tokens(path: Path) -> None:
    async with serving(path, surface=EmbedSurface()) as server:
        client = await server.connect()
        await client.send({"id": "e", "input": ["four"]})
        await client.frame()
        metrics = seen(server)["metrics"]
        assert metrics["surfaces"]["embed"]["done"] == 1
        assert metrics["backends"]["mock"]["prompt_tokens"] == 4


async def test_the_rows_list_running_and_waiting_requests(path: Path) -> None:
    gate = Gate()
    async with serving(path, Mock(tape=["a", "b"], pace=gate)) as server:
        first, second, third = [await server.connect() for _ in range(3)]
        await first.send(ask("r" * 500))
        await until(lambda: gate.waiting == 1)
        gate.open()
        assert (await first.frame())["type"] == "token"
        await second.send(ask("batch", priority="batch"))
        await until(lambda: server.admission.waiting == 1)
        await third.send(ask("soon"))
        await until(lambda: server.admission.waiting == 2)
        report = seen(server)
        (running,) = report["running"]
        assert (running["id"], running["backend"], running["tokens"]) == ("r" * 128, "mock", 1)
        assert (running["position"], running["surface"], running["peer"]) == (None, "v1", "unix")
        assert running["age_ms"] > 0
        assert isinstance(running["peer_pid"], int)
        rows = [(row["id"], row["position"], row["priority"], row["tokens"]) for row in report["waiting"]]
        assert rows == [("soon", 1, "interactive", 0), ("batch", 2, "batch", 0)]
        assert report["lifecycle"] == {"status": "ready"}
        assert (report["active_permits"], report["queue_depth"]) == (1, 10)
        for _ in range(3):
            gate.open(3)
        for client in (first, second, third):
            while (await client.frame())["type"] != "done":
                pass
        assert (seen(server)["running"], seen(server)["waiting"]) == ([], [])
