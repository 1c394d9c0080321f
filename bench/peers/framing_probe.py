"""Measures the fast path of the installed inferd; prints nanoseconds for each measurement, as JSON.

It uses only names that every version has, so that two versions can be compared.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from inferd import fastpath

PREFIX, SUFFIX = b'{"type":"token","id":"q7","content":"', b'"}\n'
LINES = (b"x" * 99 + b"\n") * 600
BATCHES = 40


def nanoseconds(work: Callable[[], Any], calls: int) -> float:
    """Nanoseconds of one call, in the fastest of many batches."""
    best = float("inf")
    for _ in range(BATCHES):
        start = time.perf_counter_ns()
        for _ in range(calls):
            work()
        best = min(best, (time.perf_counter_ns() - start) / calls)
    return best


def split() -> None:
    splitter = fastpath.LineSplitter(65536)
    splitter.feed(LINES)
    while splitter.next_line() is not None:
        pass


print(
    json.dumps(
        {
            "token frame": nanoseconds(lambda: fastpath.token_frame(PREFIX, " hello", SUFFIX), 5000),
            "frame of a paragraph": nanoseconds(
                lambda: fastpath.token_frame(PREFIX, "A line of text, one of four. " * 4, SUFFIX), 5000
            ),
            "split 600 lines": nanoseconds(split, 20),
        }
    )
)
