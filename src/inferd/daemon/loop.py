"""The event loop of the daemon, and its threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

# Large requests are validated and converted in threads. There are few threads, because of the GIL.
WORKER_THREADS = 4


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Returns an event loop with a thread pool. The event loop comes from uvloop if uvloop is installed, and
    otherwise from asyncio."""
    try:
        import uvloop
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    loop.set_default_executor(_worker_threads())
    return loop


def _worker_threads() -> ThreadPoolExecutor:
    """Returns the thread pool for ``asyncio.to_thread``. Starts all threads at once, so that an idle daemon
    always has the same number of threads."""
    pool = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="inferd-work")
    started = threading.Barrier(WORKER_THREADS + 1)
    for _ in range(WORKER_THREADS):
        pool.submit(started.wait)
    started.wait()
    return pool
