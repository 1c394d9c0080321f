"""One bounded queue for each model, so that requests for a busy or slow model do not block requests for
another model.

``active_permits`` and ``queue_depth`` limit each queue. The connection limit bounds the total over all
queues, since a connection has one request at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

from inferd.serve.admission import Admission


class Queues:
    """The queues by backend name. The first use of a name creates the queue."""

    def __init__(self, active_permits: int, queue_depth: int) -> None:
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        self._queues: dict[str, Admission] = {}
        self._closed = False

    def of(self, backend: str) -> Admission:
        """The queue in front of a backend."""
        queue = self._queues.get(backend)
        if queue is None:
            queue = self._queues[backend] = Admission(self.active_permits, self.queue_depth)
            if self._closed:
                queue.close()
        return queue

    def waiting_for(self, backend: str) -> int:
        """The number of requests queued for a backend."""
        queue = self._queues.get(backend)
        return 0 if queue is None else queue.waiting

    @property
    def running(self) -> int:
        return sum(queue.running for queue in self._queues.values())

    @property
    def waiting(self) -> int:
        return sum(queue.waiting for queue in self._queues.values())

    def running_requests(self) -> list[object]:
        """Returns the holders of the running requests, in no particular order."""
        return [holder for queue in self._queues.values() for holder in queue.running_requests()]

    def queued_requests(self) -> Iterator[tuple[int, object]]:
        """For each waiting request, yields the position in its queue, from 1, and the holder. Takes one queue
        after another."""
        for queue in self._queues.values():
            yield from enumerate(queue.queued_requests(), start=1)

    def resize(self, active_permits: int, queue_depth: int) -> None:
        """Calls :meth:`Admission.resize` of every queue."""
        self.active_permits = max(1, active_permits)
        self.queue_depth = queue_depth
        for queue in self._queues.values():
            queue.resize(active_permits, queue_depth)

    def look_again(self) -> None:
        """Calls :meth:`Admission.look_again` of every queue."""
        for queue in self._queues.values():
            queue.look_again()

    def close(self) -> None:
        """Refuses new requests from now on. Queued and running requests stay."""
        self._closed = True
        for queue in self._queues.values():
            queue.close()

    def release_waiters(self) -> None:
        """Calls :meth:`Admission.release_waiters` of every queue."""
        for queue in self._queues.values():
            queue.release_waiters()

    async def idle(self) -> None:
        """Returns once no request runs or waits."""
        while busy := next(
            (queue for queue in self._queues.values() if queue.running or queue.waiting), None
        ):
            await busy.idle()
