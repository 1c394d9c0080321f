"""Deadlines of requests: times of the event loop's clock, and the alarm that keeps one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from inferd.serve.surface import Request


def deadline_of(request: Request) -> float | None:
    """A time of the event loop's clock, counted from now; ``None`` where the request has no deadline."""
    if request.deadline_ms is None:
        return None
    return asyncio.get_running_loop().time() + request.deadline_ms / 1e3


@contextlib.contextmanager
def alarm(when: float | None, ring: Callable[[], object]) -> Iterator[None]:
    """Calls ``ring`` at a time of the event loop's clock, if the block has not ended by then."""
    handle = None if when is None else asyncio.get_running_loop().call_at(when, ring)
    try:
        yield
    finally:
        if handle is not None:
            handle.cancel()
