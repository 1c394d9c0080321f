"""Request deadlines, as times of the event loop's clock, and an alarm that rings at such a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from inferd.serve.surface import WireRequest


def deadline_of(request: WireRequest) -> float | None:
    """Returns the time at which the request's ``deadline_ms``, counted from now, have passed, or ``None``
    without a deadline."""
    if request.deadline_ms is None:
        return None
    return asyncio.get_running_loop().time() + request.deadline_ms / 1e3


@contextlib.contextmanager
def alarm(when: float | None, ring: Callable[[], object]) -> Iterator[None]:
    """Calls ``ring`` at ``when`` of the event loop's clock, unless the block ends first."""
    handle = None if when is None else asyncio.get_running_loop().call_at(when, ring)
    try:
        yield
    finally:
        if handle is not None:
            handle.cancel()
