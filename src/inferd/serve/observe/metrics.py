"""The daemon's own metrics: plain numbers, updated where the events happen.

Every request and every chunk of an answer updates metrics, so an update must be cheap. Quantiles are computed
only when the metrics are read. The counters start at zero with the daemon and are kept across a reload. All
updates happen on the event loop's thread.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence

WAIT_BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
)
GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
PREFILL_BOUNDS = (10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4)
DECODE_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1e3)
# The number of recent values kept for quantiles.
KEPT = 128
_SHOWN_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Histogram:
    """Counts values in buckets. Each of ``bounds`` is the largest value of a bucket. A last bucket counts all
    larger values. ``total`` is the sum of all values, and ``recent`` holds the last ``KEPT`` values."""

    __slots__ = ("bounds", "counts", "recent", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.recent: deque[float] = deque(maxlen=KEPT)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.recent.append(value)

    def summary(self) -> dict[str, object]:
        """Returns the histogram as plain values. The quantiles are computed from the last ``KEPT`` values.
        They are ``None`` before the first value."""
        recent = sorted(self.recent)
        return {
            "count": sum(self.counts),
            "sum": self.total,
            **{name: quantile(recent, share) for name, share in _SHOWN_QUANTILES.items()},
            "bounds": self.bounds,
            "counts": self.counts,
        }


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Returns the smallest value ``v`` in ``ordered`` for which at least ``share`` of the values are ``v`` or
    less. Returns ``None`` if ``ordered`` is empty."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


class SurfaceMetrics:
    """The metrics of one surface. Every request is counted once: in ``done`` if it was answered, in
    ``errors`` by the code of its error, or in ``cancels`` by the reason for ending it early. ``errors`` also
    counts errors without a request, such as a line over the limit."""

    def __init__(self) -> None:
        self.connections_open = 0
        self.connections = 0
        self.done = 0
        self.errors: defaultdict[str, int] = defaultdict(int)
        self.cancels: defaultdict[str, int] = defaultdict(int)
        self.queue_wait = Histogram(WAIT_BOUNDS)

    def summary(self) -> dict[str, object]:
        return {
            "connections_open": self.connections_open,
            "connections": self.connections,
            "done": self.done,
            "errors": self.errors,
            "cancels": self.cancels,
            "queue_wait_seconds": self.queue_wait.summary(),
        }


class BackendMetrics:
    """The metrics of one configured backend.

    ``ttft`` is the time from the arrival of a request to the first chunk of its answer. ``inter_token`` is
    the time between two chunks, less the time spent waiting for the client to read. ``ttft`` and
    ``inter_token`` are measured for streamed answers only. ``prefill`` and ``decode`` are speeds in tokens
    per second, from times that the backend measured; ``prefill`` does not count cached tokens. ``breaker``
    counts how often the circuit breaker changed to each state. ``routed`` counts the requests of a pool that
    were sent to the backend. There is one count for each reason to choose the backend.
    """

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.cache_hits = 0
        self.cache_misses: defaultdict[str, int] = defaultdict(int)
        self.cache_bytes = 0
        self.cache_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.errors: defaultdict[str, int] = defaultdict(int)
        self.breaker: defaultdict[str, int] = defaultdict(int)
        self.routed: defaultdict[str, int] = defaultdict(int)
        self.ttft = Histogram(WAIT_BOUNDS)
        self.inter_token = Histogram(GAP_BOUNDS)
        self.prefill = Histogram(PREFILL_BOUNDS)
        self.decode = Histogram(DECODE_BOUNDS)

    def summary(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "cache_hits": self.cache_hits,
            "cache_misses": self.cache_misses,
            "cache_bytes": self.cache_bytes,
            "cache_tokens": self.cache_tokens,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "errors": self.errors,
            "breaker": self.breaker,
            "routed": self.routed,
            "time_to_first_token_seconds": self.ttft.summary(),
            "inter_token_seconds": self.inter_token.summary(),
            "prefill_tokens_per_second": self.prefill.summary(),
            "decode_tokens_per_second": self.decode.summary(),
        }


class Metrics:
    """The metrics of all surfaces, and the metrics of all backends. Both are kept by name. A name appears at
    its first use."""

    def __init__(self) -> None:
        self.surfaces: defaultdict[str, SurfaceMetrics] = defaultdict(SurfaceMetrics)
        self.backends: defaultdict[str, BackendMetrics] = defaultdict(BackendMetrics)

    def breaker_changed(self, backend: str, state: str) -> None:
        self.backends[backend].breaker[state] += 1

    def summary(self) -> dict[str, object]:
        """Returns all metrics as the value of ``metrics`` in a ``snapshot`` frame."""
        return {
            "surfaces": {name: metrics.summary() for name, metrics in self.surfaces.items()},
            "backends": {name: metrics.summary() for name, metrics in self.backends.items()},
        }
