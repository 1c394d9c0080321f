"""The requests to an engine process: their queue, and the messages that come back.

A :class:`Job` waits in the queue, sends its request to the process, and collects the messages that come back.
:class:`JobQueue` starts jobs in order of arrival. At most ``limit`` jobs with a client run at once. If the
client of a running job leaves, the job runs until the process reports the end of the job. The next job does
not wait for that report, but at most twice ``limit`` jobs run at once. A job that is suspected of crashing
engine processes runs alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from inferd.engine.local.child import messages as m
from inferd.engine.local.child.descriptors import close_all
from inferd.engine.requests import EmbedRequest, GenerateRequest, RankRequest
from inferd.errors import EngineEnded, InferdError

if TYPE_CHECKING:
    from inferd.engine.local.child.process import EngineProcess

EngineRequest = GenerateRequest | EmbedRequest | RankRequest
Message = tuple[int, bytes, list[int]]
"""Kind, body, descriptors."""

LARGE_REQUEST_CHARS = 256 << 10
"""A larger request is packed in a thread, so that it does not block the event loop."""


class Job:
    """One request. With ``alone``, the job runs only while no other job runs. Call all methods on the event
    loop."""

    def __init__(self, jobs: JobQueue, request: EngineRequest, *, alone: bool) -> None:
        self.request = request
        self.alone = alone
        self.process: EngineProcess | None = None
        self.ended = False
        """Whether the process has finished the job or never got it."""
        self._jobs = jobs
        self._number = 0
        self._messages: deque[Message] = deque()
        self._error: InferdError | None = None
        self.left = False
        self._waiter: asyncio.Future[None] | None = None

    async def begin(self) -> bool:
        """Waits in the queue, then sends the request to the process.

        Returns False if the client left before the request was sent.
        """
        self._jobs.join(self)
        try:
            await self._until(lambda: self.process is not None)
            if self.process is None:
                if self._error is not None:
                    raise self._error
                return False
            process = self.process
            body, fds = await self._pack()
        except BaseException:
            self._give_up_turn()
            raise
        if self.left or self._error is not None or not process.running:
            close_all(fds)
            self._give_up_turn()
            if self.left:
                return False
            raise self._error or EngineEnded("the engine ended before the request began; send it again")
        kind = {GenerateRequest: m.GENERATE, EmbedRequest: m.EMBED, RankRequest: m.RANK}[type(self.request)]
        self._number = process.submit(kind, body, fds, self)
        return True

    async def _pack(self) -> tuple[bytes, list[int]]:
        request = self.request
        if isinstance(request, GenerateRequest):
            pack, size = m.pack_generate, _size(request)
            if size > LARGE_REQUEST_CHARS:
                return await _pack_aside(request)
            return pack(request)
        return m.pack(request)

    async def next(self) -> Message:
        """Returns the process's next message about the job. If the job has failed, raises its error."""
        await self._until(lambda: bool(self._messages))
        if self._messages:
            return self._messages.popleft()
        raise self._error or EngineEnded("the request was dropped")

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached() and self._error is None and not self.left:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def put(self, message: Message) -> None:
        """Queues a message as if the process had sent it."""
        self._messages.append(message)
        self._wake()

    def credit(self, size: int) -> None:
        """Tells the process that ``size`` more bytes of the job's events were passed on to the client."""
        if self.process is not None:
            self.process.tell(m.CREDIT, self._number, m.CREDIT_BODY.pack(size))

    def prompt_read(self) -> float | None:
        """Returns the processed share of the prompt, from 0 to 1, or ``None`` if it is not known."""
        return None if self.process is None else self.process.prompt_read(self._number)

    def cancel(self) -> None:
        """Asks the process to end the job soon."""
        if self._number and self.process is not None:
            self.process.tell(m.CANCEL, self._number)

    def leave(self) -> None:
        """Ends the job, because its messages have no reader any more. May be called again."""
        if self.left:
            return
        self.left = True
        if self.process is None:
            self._jobs.quit(self)
            self.ended = True
        elif self._number and not self.ended:
            self.process.tell(m.DROP, self._number)
        # Not at once: the clients of other jobs in the queue may have left at the same moment.
        asyncio.get_running_loop().call_soon(self._jobs.look_again)
        self._close_fds()
        self._wake()

    def fail(self, error: InferdError) -> None:
        """Raises ``error`` in the coroutine that waits for the job."""
        self._error = error
        self._wake()

    # From the process.

    def take(self, kind: int, body: bytes, fds: list[int]) -> None:
        if kind in m.ENDS:
            self._give_up_turn()
        if self.left:
            close_all(fds)
        else:
            self._messages.append((kind, body, fds))
            self._wake()

    def lost(self) -> None:
        self.ended = True

    def _give_up_turn(self) -> None:
        if not self.ended:
            self.ended = True
            self._jobs.end(self)

    def _close_fds(self) -> None:
        for _, _, fds in self._messages:
            close_all(fds)
        self._messages.clear()

    def start(self, process: EngineProcess) -> None:
        """Ends the job's wait in the queue. The job then runs on ``process``."""
        self.process = process
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class JobQueue:
    """Runs jobs on the process that was last passed to :meth:`serve`: at most ``limit`` jobs whose client is
    still there, and at most twice ``limit`` jobs in all. A job with ``alone`` runs only while no other job
    runs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running: set[Job] = set()
        self._queue: deque[Job] = deque()
        self._process: EngineProcess | None = None

    def serve(self, process: EngineProcess | None) -> None:
        """Runs the jobs on ``process``. While ``process`` is ``None``, the jobs wait."""
        self._process = process
        self.look_again()

    def join(self, job: Job) -> None:
        self._queue.append(job)
        self.look_again()

    def quit(self, job: Job) -> None:
        if job in self._queue:
            self._queue.remove(job)

    def end(self, job: Job) -> None:
        self.running.discard(job)
        self.look_again()

    def take_running(self) -> set[Job]:
        """Returns and removes the running jobs. Call this when their process has died, or before it is
        closed."""
        running, self.running = self.running, set()
        return running

    def fail_waiting(self, error: Callable[[], InferdError]) -> None:
        """Fails all queued jobs, each with a new ``error()``."""
        queue, self._queue = self._queue, deque()
        for job in queue:
            job.ended = True
            job.fail(error())

    def look_again(self) -> None:
        """Starts the next jobs if there is room for them."""
        while self._queue and self._process is not None and self._has_place_for(self._queue[0]):
            job = self._queue.popleft()
            self.running.add(job)
            job.start(self._process)

    def _has_place_for(self, job: Job) -> bool:
        if job.alone or any(other.alone for other in self.running):
            return not self.running
        with_client = sum(not other.left for other in self.running)
        return with_client < self.limit and len(self.running) < 2 * self.limit


Packed = tuple[bytes, list[int]]


async def _pack_aside(request: GenerateRequest) -> Packed:
    """Packs a request in a separate thread.

    If the client leaves while the thread packs, the packed request's descriptors are closed afterwards.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="inferd-pack")
    packing = asyncio.get_running_loop().run_in_executor(thread, m.pack_generate, request)
    thread.shutdown(wait=False)
    try:
        return await asyncio.shield(packing)
    except asyncio.CancelledError:
        packing.add_done_callback(_close_packed)
        raise


def _close_packed(packing: asyncio.Future[Packed]) -> None:
    if packing.exception() is None:
        close_all(packing.result()[1])


def _size(request: GenerateRequest) -> int:
    """Returns the approximate number of bytes to pack for a request."""
    size = 0
    for message in request.messages:
        if isinstance(message.content, str):
            size += len(message.content)
        else:
            size += sum(len(part) if isinstance(part, str) else len(part.data) for part in message.content)
    return size
