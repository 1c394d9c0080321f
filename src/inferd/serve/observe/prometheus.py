"""The metrics for Prometheus: the metric families, and an HTTP server for ``GET /metrics``, built with h11.

This module is imported only if metrics are enabled. Each connection gets one answer. At most
``MAX_CONNECTIONS`` connections are open at a time. Each connection is closed after ``TIMEOUT_SECS`` at the
latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

import h11
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from inferd import __version__
from inferd.serve.observe.metrics import BackendMetrics, Histogram, Metrics, SurfaceMetrics
from inferd.serve.observe.snapshot import Snapshot
from inferd.serve.peer import Peer

MAX_CONNECTIONS = 16
MAX_HEAD_BYTES = 8192
TIMEOUT_SECS = 5.0

Sample = tuple[tuple[str, ...], float]


class Exporter:
    """Serves the metrics on the connections of a listener."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(InferdCollector(snapshot))
        ProcessCollector(registry=self._registry)
        self._encode, self._content_type = choose_encoder("")

    async def serve(self, sock: socket.socket, peer: Peer, number: int) -> None:
        """Serves one scrape, and closes ``sock``."""
        with sock, contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._exchange(sock), TIMEOUT_SECS)

    async def _exchange(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            while (request := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await loop.sock_recv(sock, MAX_HEAD_BYTES))
        except h11.RemoteProtocolError as error:
            await loop.sock_sendall(sock, _response(http, error.error_status_hint, "text/plain", b""))
            return
        if isinstance(request, h11.Request):
            status, content_type, body = await self._answer(request)
            await loop.sock_sendall(sock, _response(http, status, content_type, body, request.method))

    async def _answer(self, request: h11.Request) -> tuple[int, str, bytes]:
        if request.target.partition(b"?")[0] != b"/metrics":
            return 404, "text/plain", b"the metrics are at /metrics\n"
        if request.method not in (b"GET", b"HEAD"):
            return 405, "text/plain", b"GET it\n"
        return 200, self._content_type, await self._metrics()

    async def _metrics(self) -> bytes:
        """Encodes the metric families one by one. Lets the event loop run after each family, so that a scrape
        does not delay answers."""
        parts = []
        for family in self._registry.collect():
            parts.append(self._encode(_Only(family)))
            await asyncio.sleep(0)
        return b"".join(parts)


def _response(
    http: h11.Connection, status: int, content_type: str, body: bytes, method: bytes = b"GET"
) -> bytes:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    reason = HTTPStatus(status).phrase
    head = http.send(h11.Response(status_code=status, headers=headers, reason=reason))
    content = b"" if method == b"HEAD" else http.send(h11.Data(data=body))
    return b"".join((head or b"", content or b"", http.send(h11.EndOfMessage()) or b""))


class _Only(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


class InferdCollector(Collector):
    """Builds the metric families for each scrape, from the daemon's own metrics."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield _gauge("inferd_info", "The version of the daemon.", ("version",), [((__version__,), 1)])
        yield _gauge(
            "inferd_uptime_seconds", "Time since the daemon started.", (), [((), snapshot.uptime_secs)]
        )
        admission = snapshot.admission
        for name, text, value in (
            ("inferd_requests_running", "Running requests.", admission.running),
            ("inferd_requests_waiting", "Queued requests.", admission.waiting),
            ("inferd_active_permits", "Requests that may run at once.", admission.active_permits),
            ("inferd_queue_depth", "Requests that may be queued.", admission.queue_depth),
        ):
            yield _gauge(name, text, (), [((), value)])
        yield from _of_surfaces(snapshot.metrics)
        yield from _of_backends(snapshot.metrics)
        yield from _of_entries(snapshot.backends())


def _of_surfaces(metrics: Metrics) -> Iterator[Metric]:
    surfaces = list(metrics.surfaces.items())

    def each(value: Callable[[SurfaceMetrics], float]) -> list[Sample]:
        return [((name,), value(metrics)) for name, metrics in surfaces]

    def each_of(counts: Callable[[SurfaceMetrics], Mapping[str, int]]) -> list[Sample]:
        return [
            ((name, label), count) for name, metrics in surfaces for label, count in counts(metrics).items()
        ]

    yield _gauge(
        "inferd_connections_open", "Open connections.", ("surface",), each(lambda s: s.connections_open)
    )
    yield _counter("inferd_connections", "Connections accepted.", ("surface",), each(lambda s: s.connections))
    yield _counter(
        "inferd_requests_done", "Requests answered to their end.", ("surface",), each(lambda s: s.done)
    )
    yield _counter(
        "inferd_errors", "Error frames sent, by code.", ("surface", "code"), each_of(lambda s: s.errors)
    )
    yield _counter(
        "inferd_cancels",
        "Requests ended early: the client left, the deadline passed, or the daemon stopped.",
        ("surface", "reason"),
        each_of(lambda s: s.cancels),
    )
    yield _histogram(
        "inferd_queue_wait_seconds",
        "Time from the arrival of a request to its admission.",
        "surface",
        ((name, metrics.queue_wait) for name, metrics in surfaces),
    )


def _of_backends(metrics: Metrics) -> Iterator[Metric]:
    backends = list(metrics.backends.items())

    def each(value: Callable[[BackendMetrics], float]) -> list[Sample]:
        return [((name,), value(metrics)) for name, metrics in backends]

    def each_of(counts: Callable[[BackendMetrics], Mapping[str, int]]) -> list[Sample]:
        return [
            ((name, label), count) for name, metrics in backends for label, count in counts(metrics).items()
        ]

    label = ("backend",)
    yield _counter("inferd_prompt_tokens", "Tokens of prompts.", label, each(lambda b: b.prompt_tokens))
    yield _counter(
        "inferd_completion_tokens", "Tokens of answers.", label, each(lambda b: b.completion_tokens)
    )
    yield _counter(
        "inferd_cached_tokens",
        "Prompt tokens taken from the prefix cache.",
        label,
        each(lambda b: b.cached_tokens),
    )
    yield _counter(
        "inferd_cache_hits",
        "Requests with at least half of their prompt in the prefix cache.",
        label,
        each(lambda b: b.cache_hits),
    )
    yield _counter(
        "inferd_cache_misses",
        "Requests with less than half of their prompt in the prefix cache, by reason.",
        ("backend", "reason"),
        each_of(lambda b: b.cache_misses),
    )
    yield _gauge(
        "inferd_cache_bytes",
        "Memory for the KV caches of earlier prompts outside the slots.",
        label,
        each(lambda b: b.cache_bytes),
    )
    yield _gauge(
        "inferd_cache_tokens",
        "Tokens in the KV caches of earlier prompts, in idle slots and in memory.",
        label,
        each(lambda b: b.cache_tokens),
    )
    yield _counter(
        "inferd_drafted_tokens",
        "Draft tokens computed.",
        label,
        each(lambda b: b.drafted_tokens),
    )
    yield _counter(
        "inferd_accepted_tokens",
        "Draft tokens that became part of an answer.",
        label,
        each(lambda b: b.accepted_tokens),
    )
    yield _counter(
        "inferd_backend_errors",
        "Requests that failed because of the backend, by error code.",
        ("backend", "code"),
        each_of(lambda b: b.errors),
    )
    yield _counter(
        "inferd_breaker_changes",
        "Changes of the circuit breaker to each state.",
        ("backend", "state"),
        each_of(lambda b: b.breaker),
    )
    yield _counter(
        "inferd_routed",
        "Requests of a pool sent to the backend, by the reason of the choice.",
        ("backend", "reason"),
        each_of(lambda b: b.routed),
    )
    histograms: tuple[tuple[str, str, Callable[[BackendMetrics], Histogram]], ...] = (
        (
            "inferd_time_to_first_token_seconds",
            "Time from the arrival of a request to the first piece of its answer.",
            lambda b: b.ttft,
        ),
        ("inferd_inter_token_seconds", "Time between two pieces of an answer.", lambda b: b.inter_token),
        (
            "inferd_prefill_tokens_per_second",
            "Prompt tokens computed per second of a request.",
            lambda b: b.prefill,
        ),
        (
            "inferd_decode_tokens_per_second",
            "Answer tokens made per second of a request.",
            lambda b: b.decode,
        ),
    )
    for name, text, of in histograms:
        yield _histogram(name, text, "backend", ((key, of(metrics)) for key, metrics in backends))


def _of_entries(backends: list[dict[str, Any]]) -> Iterator[Metric]:
    up: list[Sample] = [((str(row["name"]),), float(row["ready"] is True)) for row in backends]
    outstanding: list[Sample] = [
        ((str(row["name"]), whose), row[key])
        for row in backends
        if row["pool"]
        for whose, key in (("own", "outstanding"), ("other", "others"))
    ]
    yield _gauge(
        "inferd_pool_outstanding",
        "Requests at a backend of a pool: from this daemon, and from other clients, as the backend reports.",
        ("backend", "whose"),
        outstanding,
    )
    yield _gauge("inferd_backend_ready", "1 if the backend can serve a request now.", ("backend",), up)
    states: list[Sample] = [
        ((str(row["name"]), state), float(row["breaker"] == state))
        for row in backends
        for state in ("closed", "half-open", "open")
    ]
    engines = [(str(row["name"]), engine) for row in backends if (engine := row["engine"])]
    for name, text, key in (
        ("inferd_engine_memory_bytes", "Resident memory of the backend's process.", "memory_bytes"),
        (
            "inferd_engine_silent_seconds",
            "Time for which the backend's process has not responded.",
            "silent_secs",
        ),
        (
            "inferd_cache_disk_bytes",
            "Size of the files with the KV caches of the backend's earlier prompts.",
            "cache_disk_bytes",
        ),
    ):
        yield _gauge(name, text, ("backend",), [((of,), engine[key]) for of, engine in engines])
    on_gpus = [((of, gpu), size) for of, engine in engines for gpu, size in engine["gpu_bytes"].items()]
    text = "Memory that the backend's model takes on a GPU."
    yield _gauge("inferd_engine_gpu_memory_bytes", text, ("backend", "gpu"), on_gpus)
    restarts = [((of,), engine["restarts"]) for of, engine in engines]
    yield _counter("inferd_engine_restarts", "Restarts of the backend's process.", ("backend",), restarts)
    removed = [((of,), engine["cache_files_removed"]) for of, engine in engines]
    yield _counter(
        "inferd_cache_files_removed",
        "Files with KV caches that were removed because they were damaged or made with another key.",
        ("backend",),
        removed,
    )
    yield _gauge(
        "inferd_breaker_state",
        "1 for the present state of the circuit breaker, else 0.",
        ("backend", "state"),
        states,
    )


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family


def _histogram(name: str, text: str, label: str, histograms: Iterable[tuple[str, Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=(label,))
    for key, histogram in histograms:
        bounds = (*map(str, histogram.bounds), "+Inf")
        family.add_metric(
            (key,), [*zip(bounds, itertools.accumulate(histogram.counts), strict=True)], histogram.total
        )
    return family
