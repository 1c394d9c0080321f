"""Request deadlines as times of the event loop's clock, and an alarm for a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inferd.serve.surface import WireRequest


def deadline_of(request: WireRequest) -> float | None:
    """Returns the time ``deadline_ms`` milliseconds from now, or ``None`` if the request has no deadline."""
    if request.deadline_ms is None:
        return None
    return asyncio.get_running_loop().time() + request.deadline_ms / 1e3


class Alarm:
    """Calls ``ring`` when the event loop's clock reaches ``when``, unless the ``with`` block ends first. Does
    nothing if ``when`` is ``None``."""

    __slots__ = ("_handle",)

    def __init__(self, when: float | None, ring: Callable[[], object]) -> None:
        self._handle = None if when is None else asyncio.get_running_loop().call_at(when, ring)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.cancel()
