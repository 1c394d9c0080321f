"""What is counted of requests, what a snapshot says of them, and the same for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from inferd.config.addresses import LocalAddress
from inferd.engine.backend import Done, Frames, GenerateRequest, Stream, Timings, Usage
from inferd.engine.mock import Mock, MockStream
from inferd.errors import AddressError, InvalidRequest, Unavailable
from inferd.fastpath import token_frame
from inferd.serve import prometheus
from inferd.serve.addresses import bind_metrics
from inferd.serve.bind import bind_unix
from inferd.serve.listener import Listener, Places
from inferd.serve.metrics import Histogram, quantile
from inferd.serve.overview import Overview
from inferd.serve.router import FAILURES
from inferd.serve.vectors import EmbedSurface
from inferd.wire import admin
from tests.in_process import Gate, Server, ask, serving, until

# Numbers.


def test_a_histogram_counts_a_bound_with_what_is_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 7.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 2, 1], 11.5)


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 5.0),
        ([10, 10, 0], 0.75, 15.0),
        ([1, 0, 1], 0.5, 10.0),
        ([0, 4, 0], 1.0, 20.0),
        ([0, 1, 9], 0.5, 20.0),
    ],
)
def test_quantiles_lie_between_the_bounds(counts: list[int], share: float, value: float | None) -> None:
    assert quantile((10.0, 20.0), counts, share) == value


# Requests.


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


def overview_of(server: Server) -> Overview:
    service = server.service
    return Overview(service.admission, service.router, service.metrics)


def seen(server: Server) -> dict[str, Any]:
    """A snapshot, as it comes out of the wire."""
    frame = admin.snapshot(admin.READY, overview_of(server).snapshot())
    return admin.parse(frame.removesuffix(b"\n"))


class _Measuring(Mock):
    """A mock that measures itself: 30 tokens of prompt, 10 of them cached, in 10 ms."""

    async def generate(self, request: GenerateRequest) -> Stream:
        stream = _MeasuringStream(self, request)
        self.open_streams.add(stream)
        return stream


class _MeasuringStream(MockStream):
    async def __anext__(self) -> Any:
        event = await super().__anext__()
        if isinstance(event, Done):
            return Done("end", Usage(30, event.usage.completion_tokens, 10), Timings(10.0, 40.0, 12.0, 75.0))
        return event


class _Framing(Mock):
    """A mock that hands over its whole tape as frames, at once, and ends when it is told to."""

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
    async with serving(path, _Measuring("m", tape=["a", "b", "c"])) as server:
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
    assert 50 < backend["decode_tokens_per_second"]["p50"] <= 75


async def test_frames_that_come_together_are_as_many_tokens(path: Path) -> None:
    """A backend with its own fast path hands over at once what has gathered while nobody asked."""
    backend = _Framing(tape=["a", "b"])
    async with serving(path, backend) as server:
        client = await server.connect()
        await client.send(ask())
        assert [(await client.frame())["content"] for _ in range(2)] == ["a", "b"]
        (row,) = seen(server)["running"]
        assert row["tokens"] == 2
        backend.end.set()
        assert (await client.frame())["type"] == "done"


async def test_the_time_of_a_reader_is_not_the_time_of_the_backend(path: Path) -> None:
    """The gap between two pieces is counted from when the client had read the first."""
    gate = Gate()
    async with serving(path, Mock(tape=["x" * 4_000_000, "b"], pace=gate)) as server:
        client = await server.connect()
        await client.send(ask())
        gate.open()
        (session,) = server.service.sessions
        await until(lambda: session._conn.blocked)
        await asyncio.sleep(0.05)
        assert json.loads(await client.line())["type"] == "token"
        gate.open(2)
        assert json.loads(await client.line())["type"] == "token"
        metrics = seen(server)["metrics"]["backends"]["mock"]
        assert metrics["inter_token_seconds"]["sum"] < 0.05
        await client.line()


async def test_refusals_and_what_is_no_request_are_errors_by_code(path: Path) -> None:
    async with serving(path, queue_depth=0) as server:
        client = await server.connect()
        with await server.admission.admit("another"):
            await client.send(ask())
            assert (await client.frame())["code"] == "queue_full"
        await client.send({"id": "q", "messages": []})
        assert (await client.frame())["code"] == "invalid_request"
        await client.send(b"x\n")
        assert (await client.frame())["code"] == "invalid_request"
        surface = seen(server)["metrics"]["surfaces"]["v1"]
        assert surface["errors"] == {"queue_full": 1, "invalid_request": 2}
        assert surface["done"] == 0


async def test_what_a_backend_fails_is_its_own_and_the_breakers(path: Path) -> None:
    async with serving(path, Mock("broken", error=Unavailable("no"))) as server:
        client = await server.connect()
        for _ in range(FAILURES + 1):
            await client.send(ask())
            assert (await client.frame())["code"] == "backend_unavailable"
        report = seen(server)
        assert report["metrics"]["backends"]["broken"]["errors"] == {"backend_unavailable": FAILURES}
        # The one that no backend was let to serve is an error of the surface alone.
        assert report["metrics"]["surfaces"]["v1"]["errors"] == {"backend_unavailable": FAILURES + 1}
        assert [(row["name"], row["breaker"], row["ready"]) for row in report["backends"]] == [
            ("broken", "open", True)
        ]


async def test_what_a_backend_refuses_is_not_its_failure(path: Path) -> None:
    async with serving(path, Mock(error=InvalidRequest("no"))) as server:
        client = await server.connect()
        await client.send(ask())
        assert (await client.frame())["code"] == "invalid_request"
        assert seen(server)["metrics"]["backends"]["mock"]["errors"] == {}


async def test_those_that_run_longest_come_first(path: Path) -> None:
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


async def test_an_error_that_nobody_foresaw_is_counted_too(path: Path) -> None:
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


async def test_the_rows_say_who_runs_and_who_waits(path: Path) -> None:
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


# Prometheus.


@contextlib.asynccontextmanager
async def scraped(path: Path, server: Server) -> AsyncIterator[Listener]:
    exporter = prometheus.Exporter(overview_of(server))
    listener = Listener(bind_unix(path, 0o600), exporter.serve, Places(2))
    try:
        yield listener
    finally:
        await listener.close(5)


async def get(listener: Listener, request: bytes) -> tuple[str, bytes]:
    """The status line and the body; whatever is said on the connection ends it."""
    reader, writer = await asyncio.open_unix_connection(listener.address)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body


SCRAPE = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.both_loops
async def test_a_scrape_has_the_numbers_of_the_snapshot(path: Path, short_dir: Path) -> None:
    async with serving(path, _Measuring('na"me', tape=["a", "b"]), queue_depth=0) as server:
        client = await server.connect()
        await client.send(ask(), {"id": "q", "messages": []})
        while (await client.frame())["type"] != "error":
            pass
        async with scraped(short_dir / "m", server) as listener:
            status, body = await get(listener, SCRAPE)
            assert status == "HTTP/1.1 200 OK"
            families = {family.name: family for family in text_string_to_metric_families(body.decode())}
            samples = {
                (sample.name, *sorted(sample.labels.values())): sample.value
                for family in families.values()
                for sample in family.samples
            }
            report = seen(server)
    backend = report["metrics"]["backends"]['na"me']
    assert samples["inferd_requests_done_total", "v1"] == 1
    assert samples["inferd_errors_total", "invalid_request", "v1"] == 1
    assert samples["inferd_prompt_tokens_total", 'na"me'] == 30
    assert samples["inferd_connections_open", "v1"] == 1
    assert samples["inferd_breaker_state", "closed", 'na"me'] == 1
    assert samples["inferd_breaker_state", 'na"me', "open"] == 0
    assert samples["inferd_backend_ready", 'na"me'] == 1
    assert samples["inferd_active_permits",] == 1
    assert samples["process_resident_memory_bytes",] > 1e6
    for name in ("time_to_first_token_seconds", "decode_tokens_per_second"):
        family = families[f"inferd_{name}"]
        assert family.type == "histogram"
        buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == samples[f"inferd_{name}_count", 'na"me'] == 1
        assert math.isclose(samples[f"inferd_{name}_sum", 'na"me'], backend[name]["sum"])


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:9464", "[::]:9464"])
def test_metrics_stay_on_this_machine(address: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        LocalAddress().parse(address)
    with pytest.raises(AddressError, match="loopback"):
        bind_metrics(address, None)


async def test_a_scrape_lets_others_work_between_its_families(path: Path, short_dir: Path) -> None:
    steps = 0

    async def count_steps() -> None:
        nonlocal steps
        while True:
            await asyncio.sleep(0)
            steps += 1

    async with serving(path) as server:
        exporter = prometheus.Exporter(overview_of(server))
        counting = asyncio.ensure_future(count_steps())
        assert (await exporter._metrics()).count(b"# TYPE") > 10
        counting.cancel()
        await asyncio.wait((counting,))
        assert steps > 10


async def test_the_families_are_those_of_the_page(path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    async with serving(path) as server:
        collected = list(prometheus.InferdCollector(overview_of(server)).collect())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in collected}
    assert names == set(re.findall(r"`(inferd_\w+)`", page))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"x" * 2 * prometheus.MAX_HEAD_BYTES, ""),
    ],
)
async def test_what_is_no_scrape(
    path: Path, short_dir: Path, request_: bytes, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "TIMEOUT_SECS", 60.0)
    async with serving(path) as server, scraped(short_dir / "m", server) as listener:
        answered, body = await get(listener, request_)
        assert answered == status
        assert b"inferd_" not in body
        assert (await get(listener, SCRAPE))[0] == "HTTP/1.1 200 OK"


@pytest.mark.both_loops
async def test_silent_scrapers_are_sent_away_and_hold_nobody(
    path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "TIMEOUT_SECS", 0.05)
    async with serving(path) as server, scraped(short_dir / "m", server) as listener:
        reader, writer = await asyncio.open_unix_connection(listener.address)
        writer.write(b"GET /met")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        assert (await get(listener, SCRAPE))[0] == "HTTP/1.1 200 OK"


async def test_a_scraper_that_waits_does_not_keep_the_listener_open(path: Path, short_dir: Path) -> None:
    async with serving(path) as server, scraped(short_dir / "m", server) as listener:
        _, writer = await asyncio.open_unix_connection(listener.address)
        await until(lambda: bool(listener._connections))
        await listener.close(1)
        assert not listener._connections
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
