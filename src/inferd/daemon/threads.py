"""Runs a blocking call of the daemon in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T], cancelled: threading.Event | None = None) -> T:
    """Runs ``call`` in a thread of its own. If the task is cancelled, sets ``cancelled`` and waits until the
    call ends."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="inferd-load")
    running = asyncio.get_running_loop().run_in_executor(thread, call)
    thread.shutdown(wait=False)  # the thread ends with the call instead of staying in a pool
    try:
        # From Python 3.14 on, a call that has already ended gives its result at once. What it has scheduled
        # on the loop before, such as a phase of a load, comes first.
        await asyncio.sleep(0)
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled.set()
        await asyncio.wait((running,))
        running.exception()  # avoids "exception was never retrieved"
        raise
