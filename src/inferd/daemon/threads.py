"""Work that a cancelled task waits for: a blocking call in a thread, and other tasks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T], cancelled: threading.Event | None = None) -> T:
    """Runs ``call`` in a thread of its own. If the calling task is cancelled, sets ``cancelled``, which asks
    ``call`` to stop, and waits until ``call`` has ended, even if the task is cancelled again."""
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
        with contextlib.suppress(asyncio.CancelledError):
            await until_done((running,))
        running.exception()  # avoids "exception was never retrieved"
        raise


async def until_done(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Waits for the tasks. If the calling task is cancelled, the cancellation takes effect after their
    end."""
    cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
