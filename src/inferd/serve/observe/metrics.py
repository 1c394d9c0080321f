"""What the daemon counts of itself: plain numbers, kept where the things happen.

Counting is part of every request and every piece of an answer, so it is an addition and no more; whoever
reads the numbers does the work. They only grow, also over a reload, and start from zero with the daemon. All
of it happens on the event loop's thread.
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
# How many of the last values say how things are now.
KEPT = 128
_SHOWN_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Histogram:
    """How many values fell up to each of ``bounds``, and beyond the last; ``total`` is their sum. The last
    ``KEPT`` values are kept as they were."""

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
        """The numbers and what they mean: ``counts`` has one more than ``bounds``, for what is beyond. The
        quantiles are values of the last ``KEPT``, and ``None`` of nothing."""
        recent = sorted(self.recent)
        return {
            "count": sum(self.counts),
            "sum": self.total,
            **{name: quantile(recent, share) for name, share in _SHOWN_QUANTILES.items()},
            "bounds": self.bounds,
            "counts": self.counts,
        }


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of the values that ``share`` of them do not pass; ``None`` of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


class SurfaceMetrics:
    """One surface. Every request is counted once: answered (``done``), refused or failed with an error of
    that code, or ended early for that reason. An error that answers no request, such as a line over the cap,
    is counted like one."""

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
    """One entry of the configuration.

    ``ttft`` counts from the arrival of a request to the first piece of its answer, ``inter_token`` from piece
    to piece, without the time in which the client did not read; both know streamed answers alone. ``prefill``
    (of the tokens that were not cached) and ``decode`` are what the backend itself measured, in tokens per
    second. ``breaker`` counts how often it came to a state, ``routed`` why requests of its pool came to it.
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
    """All numbers, by the names of surfaces and of backend entries; a name is there once it was used."""

    def __init__(self) -> None:
        self.surfaces: defaultdict[str, SurfaceMetrics] = defaultdict(SurfaceMetrics)
        self.backends: defaultdict[str, BackendMetrics] = defaultdict(BackendMetrics)

    def breaker_changed(self, backend: str, state: str) -> None:
        self.backends[backend].breaker[state] += 1

    def summary(self) -> dict[str, object]:
        """All of it, as it goes into a snapshot."""
        return {
            "surfaces": {name: metrics.summary() for name, metrics in self.surfaces.items()},
            "backends": {name: metrics.summary() for name, metrics in self.backends.items()},
        }
