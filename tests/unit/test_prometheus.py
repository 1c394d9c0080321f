"""The metrics in Prometheus's format, and refused requests."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from inferd.config.addresses import LocalAddress
from inferd.daemon.addresses import bind_metrics
from inferd.errors import AddressError
from inferd.serve.bind import bind_unix
from inferd.serve.listener import ConnectionLimit, Listener
from inferd.serve.observe import prometheus
from tests.in_process import Server, ask, serving, until
from tests.observed import Measuring, seen, snapshot_of


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "s"


@contextlib.asynccontextmanager
async def scraped(path: Path, server: Server) -> AsyncIterator[Listener]:
    exporter = prometheus.Exporter(snapshot_of(server))
    listener = Listener(bind_unix(path, 0o600), exporter.serve, ConnectionLimit(2))
    try:
        yield listener
    finally:
        await listener.close(5)


async def get(listener: Listener, request: bytes) -> tuple[str, bytes]:
    """The status line and the body; the connection closes after the response."""
    reader, writer = await asyncio.open_unix_connection(listener.address)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 100)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body


SCRAPE = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.both_loops
async def test_a_scrape_has_the_numbers_of_the_snapshot(path: Path, short_dir: Path) -> None:
    async with serving(path, Measuring('na"me', tape=["a", "b"]), queue_depth=0) as server:
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
        exporter = prometheus.Exporter(snapshot_of(server))
        counting = asyncio.ensure_future(count_steps())
        assert (await exporter._metrics()).count(b"# TYPE") > 10
        counting.cancel()
        await asyncio.wait((counting,))
        assert steps > 10


async def test_the_families_are_those_of_the_page(path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    async with serving(path) as server:
        collected = list(prometheus.InferdCollector(snapshot_of(server)).collect())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in collected}
    assert names == set(re.findall(r"`(inferd_\w+)`", page))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK"),
        (
            b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 405 Method Not Allowed",
        ),
        (b"GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"hello\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"x" * 2 * prometheus.MAX_HEAD_BYTES, "HTTP/1.1 431 Request Header Fields Too Large"),
    ],
)
async def test_requests_other_than_a_scrape(
    path: Path, short_dir: Path, request_: bytes, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "TIMEOUT_SECS", 60.0)
    async with serving(path) as server, scraped(short_dir / "m", server) as listener:
        answered, body = await get(listener, request_)
        assert answered == status
        assert b"inferd_" not in body
        assert (await get(listener, SCRAPE))[0] == "HTTP/1.1 200 OK"


@pytest.mark.both_loops
async def test_silent_scrapers_are_dropped_and_block_no_other(
    path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "TIMEOUT_SECS", 0.05)
    async with serving(path) as server, scraped(short_dir / "m", server) as listener:
        reader, writer = await asyncio.open_unix_connection(listener.address)
        writer.write(b"GET /met")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 100) == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        monkeypatch.setattr(prometheus, "TIMEOUT_SECS", 100.0)
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
