"""Wraps the output of one job of the token loop as a :class:`~inferd.engine.backend.Stream` of frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import orjson

from inferd import log
from inferd.engine.backend import Stream
from inferd.engine.events import Done, Event, Frames
from inferd.engine.local import _llama
from inferd.engine.local.past.answers import Keeper, Turn

_log = log.get("llamacpp")


@dataclass(slots=True)
class Trace:
    """Four times of a request, in seconds. ``arrived``: the request arrived in its engine process. ``began``:
    a thread of the pool began to prepare the request. ``submitted``: the request was passed to the token
    loop. ``first``: the first frames of the answer were collected."""

    arrived: float
    began: float = 0.0
    submitted: float = 0.0
    first: float = 0.0

    def tell(self, result: _llama.Result) -> None:
        """Logs the milliseconds between the times of this trace, at the level debug. ``loop_ms`` is the time
        from the submission to the first text in the token loop. ``prefill_ms`` is the part of ``loop_ms`` in
        which the prompt was computed."""
        prefill_ms, loop_ms = result[5], result[7]
        _log.debug(
            "request timed",
            thread_ms=round((self.began - self.arrived) * 1e3, 3),
            prepare_ms=round((self.submitted - self.began) * 1e3, 3),
            prefill_ms=round(prefill_ms, 3),
            loop_ms=round(loop_ms, 3),
            first_ms=round((self.first - self.arrived) * 1e3, 3) if self.first else None,
        )


class JobStream(Stream):
    """The events of one job. If the consumer does not read the events, the token loop keeps them and pauses
    only this job.

    ``keeper`` gets the tokens of a complete answer, and with ``as_text`` also the text. ``finish`` converts
    the job's result to the last event. ``forget`` is called when the job needs no more wake-ups. ``trace`` is
    logged at the end.
    """

    def __init__(
        self,
        engine: _llama.Engine,
        job: int,
        keeper: Keeper | None,
        trace: Trace,
        *,
        as_text: bool,
        finish: Callable[[_llama.Result], Done],
        forget: Callable[[int], None],
    ) -> None:
        self._finish = finish
        self._forget = forget
        self._keeper = keeper
        self._as_text = as_text
        self._trace = trace
        self._engine = engine
        self._job = job
        # A wake-up may have come before this stream was registered, so look once without a wake-up.
        self._something_new = True
        self._waiter: asyncio.Future[None] | None = None
        self._result: _llama.Result | None = None
        self._open = True

    def wake(self) -> None:
        self._something_new = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __anext__(self) -> Event:
        while self._open:
            if self._result is not None:
                self._open = False
                return self._finish(self._result)
            if not self._something_new:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
                continue
            self._something_new = False
            data, self._result = self._engine.collect(self._job)
            if data and not self._trace.first:
                self._trace.first = perf_counter()
            if self._result is not None:
                self._forget(self._job)
                self._keep(self._result)
                self._trace.tell(self._result)
            if data:
                return Frames(data)
        raise StopAsyncIteration

    def _keep(self, result: _llama.Result) -> None:
        if self._keeper is None or result[0] != "end":
            return
        self._keeper.tokens = result[-1]
        if self._as_text:
            self._keeper.keep(Turn(text=[orjson.loads(b'"' + result[2] + b'"')]))

    def prompt_read(self) -> float | None:
        return self._engine.prompt_read(self._job)

    def cancel(self) -> None:
        if self._open and self._result is None:
            self._engine.cancel(self._job, False)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._forget(self._job)
            if self._result is None:
                self._engine.cancel(self._job, True)
            self.wake()
