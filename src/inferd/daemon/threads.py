"""Runs a blocking call of the daemon in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T], cancelled: threading.Event | None = None) -> T:
    """Runs ``call`` in a thread of its own. If the calling task is cancelled, sets ``cancelled``, which asks
    ``call`` to stop, and waits until ``call`` has ended."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="inferd-load")
    running = asyncio.get_running_loop().run_in_executor(thread, call)
    thread.shutdown(wait=False)  # the thread ends with the call instead of staying in a pool
    try:
        # From Python 3.14 on, awaiting a call that has already ended returns at once. This sleep first lets
        # the event loop run what the call has scheduled, such as a progress event.
        await asyncio.sleep(0)
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled.set()
        await asyncio.wait((running,))
        running.exception()  # avoids "exception was never retrieved"
        raise
