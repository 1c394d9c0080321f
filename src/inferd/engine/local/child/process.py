"""The daemon's side of one engine process: loads the model, sends jobs, watches the process and ends it.

Every message is validated. After the process has ended, ``lost`` is called on each running job. Then
``on_exit`` is called once, with the reason.

A process is hung, and is killed, if it answers no ping or if a step takes far longer than predicted. A
process that was merely stopped (SIGSTOP) is killed, too. Times are those of the monotonic clock, which does
not run while the machine sleeps. The time in which the daemon itself was not running is subtracted. On Linux,
the time in which the process waited for a processor is subtracted, too: a busy machine is not a hung process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from inferd import log
from inferd.engine.backend import Needs
from inferd.engine.local.child import messages as m
from inferd.engine.local.child.descriptors import duplicates
from inferd.engine.local.child.link import Link
from inferd.engine.local.child.spawned import END_SECS, Spawned, ending
from inferd.errors import InferdError, ModelError
from inferd.progress import Progress

_BUSY_BEAT_SECS, _IDLE_BEAT_SECS = 1.0, 4.0

_log = log.get("engine")


def waits_of(pid: int) -> dict[str, int]:
    """Returns how many nanoseconds each thread of a process has waited for a processor. The result is empty
    if the system does not report this."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # the thread may have ended
            found[task.name] = int((task / "schedstat").read_text().split()[1])
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """The time limits of a process. A process that answers no ping is reported after ``slow_secs`` and killed
    after ``hang_secs``. A step of the token loop is reported once it takes ``slow_secs`` longer than
    predicted. The process is killed once a step takes longer than ``hang_secs``, and also longer than its
    predicted time multiplied by ``predicted_factor``."""

    slow_secs: float = 4.0
    hang_secs: float = 30.0
    predicted_factor: float = 20.0


class Receiver(Protocol):
    """Receives the messages of a job."""

    def take(self, kind: int, body: bytes, fds: list[int]) -> None:
        """Takes a message about the job. The kind of the last message is one of ``messages.ENDS``."""

    def lost(self) -> None:
        """Called if the process ends before the job has ended."""


class NeverAnswered(ModelError):
    """The process ended before it sent a message. It may have ended before the load began."""


class EngineProcess:
    """A running engine process: the program ``spawned``, or a new one. Await :meth:`load` before the first
    :meth:`submit`."""

    def __init__(
        self,
        name: str,
        on_exit: Callable[[str], None],
        patience: Patience,
        spawned: Spawned | None = None,
    ) -> None:
        self.name = name
        self.loaded: m.Loaded | None = None
        self.failed_itself = False
        """Whether the load failed because the process reported an error or crashed. A process that was killed
        has not crashed."""
        self.on_state: Callable[[int, int, bytes, list[int]], None] | None = None
        """Called with the messages about the files of cache states."""
        self.slow_secs = 0.0
        """If the process is slow: the time since the first unanswered ping, or the time of the current step,
        whichever is longer. Otherwise 0."""
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._patience = patience
        self._jobs: dict[int, Receiver] = {}
        self._last_job = 0
        self._progress: Progress | None = None
        self._load: asyncio.Future[m.Loaded] = self._loop.create_future()
        self._answered = False
        self._needs: asyncio.Future[Needs] = self._loop.create_future()
        self._reason = ""
        self._pulse = m.Pulse()
        self._asked: float | None = None
        self._waits: dict[str, int] | None = None
        self._step_waited = 0.0
        self._beat_due = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self._spawned = spawned or Spawned()
        self._spawned.ended.add_done_callback(self._exited)
        self._link = Link(self._spawned.sock, self._receive, self._hung_up)

    @property
    def pid(self) -> int:
        return self._spawned.pid

    @property
    def running(self) -> bool:
        """Whether the process accepts jobs."""
        return self.loaded is not None and not self._link.closed

    def memory_bytes(self) -> tuple[int, int]:
        """Returns two numbers of bytes: the resident memory of the process, including the mapped model, and
        the part of this memory that no file backs. Returns zeros if the system does not report them."""
        try:
            resident, shared = map(int, Path(f"/proc/{self.pid}/statm").read_text().split()[1:3])
        except (OSError, ValueError):
            return 0, 0
        page = os.sysconf("SC_PAGE_SIZE")
        return resident * page, (resident - shared) * page

    async def load(
        self,
        load: m.Load,
        fds: Sequence[int],
        progress: Progress,
        grant: Callable[[Needs], Awaitable[m.Granted]] | None = None,
    ) -> m.Loaded:
        """Loads a model. Does not close ``fds``. Each time the process asks, ``grant`` is awaited with what
        the model needs, and returns the answer. Raises ModelError if loading fails or the process ends,
        and the errors of ``grant``."""
        self._progress = progress
        self._link.send(m.LOAD, 0, m.encode(load), duplicates(fds))
        self._beat_soon()
        for asks_again in (True, False):  # for the whole model, and then for the layers that fit
            if grant is None:
                break
            await asyncio.wait((self._load, self._needs), return_when=asyncio.FIRST_COMPLETED)
            if self._load.done():
                break
            needs = self._needs.result()
            if asks_again:
                self._needs = self._loop.create_future()
            await self._ask(grant, needs)
        self.loaded = await asyncio.shield(self._load)
        return self.loaded

    async def _ask(self, grant: Callable[[Needs], Awaitable[m.Granted]], needs: Needs) -> None:
        """Awaits ``grant``, unless the process ends first, and passes the answer on."""
        granting = asyncio.ensure_future(grant(needs))
        try:
            await asyncio.wait((granting, self._load), return_when=asyncio.FIRST_COMPLETED)
            if granting.done():
                self._link.send(m.GRANTED, 0, m.encode(granting.result()))
        finally:
            granting.cancel()

    def prompt_read(self, job: int) -> float | None:
        """Returns the processed share of a job's prompt, from 0 to 1, as the process last reported it."""
        return self._pulse.read.get(job)

    # Jobs.

    def submit(self, kind: int, body: bytes, fds: Sequence[int], receiver: Receiver) -> int:
        """Sends a job and returns its number. Closes ``fds`` once they are sent."""
        self._last_job = self._last_job % 0xFFFFFFFF + 1
        self._jobs[self._last_job] = receiver
        self._link.send(kind, self._last_job, body, fds)
        self._beat_soon()
        return self._last_job

    def tell(self, kind: int, job: int, body: bytes = b"") -> None:
        """Sends CANCEL, DROP or CREDIT for a job. Does nothing if the job has ended."""
        if job in self._jobs:
            self._link.send(kind, job, body)

    def tell_states(self, kind: int, number: int = 0, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Sends KEPT, STATE, SAVED or FLUSH. Closes ``fds`` once they are sent."""
        self._link.send(kind, number, body, fds)

    def _receive(self, kind: int, job: int, body: bytes, fds: list[int]) -> None:
        self._answered = True
        try:
            self._handle(kind, job, body, fds)
        except (msgspec.MsgspecError, ValueError, KeyError, OSError, UnicodeDecodeError):
            self.kill("it sent an unknown message")

    def _handle(self, kind: int, job: int, body: bytes, fds: list[int]) -> None:
        if kind >= m.FRAMES:
            receiver = self._jobs.pop(job) if kind in m.ENDS else self._jobs[job]
            receiver.take(kind, body, fds)
        elif kind in (m.WANTED, m.SAVE) and self.on_state is not None:
            self.on_state(kind, job, body, fds)
        elif kind == m.PONG:
            self._asked = None
            pulse = m.decode(m.Pulse, body)
            if pulse.steps != self._pulse.steps:
                self._step_waited = 0.0  # it was the wait of an earlier step
            self._pulse = pulse
        elif kind == m.LOG:
            level, component, message, fields = m.decode(tuple[int, str, str, dict[str, object]], body)
            log.relay(level, component, message, {**fields, "engine": self.name})
        elif kind == m.PROGRESS:
            phase, details = m.decode(tuple[str, dict[str, object]], body)
            if self._progress is not None:
                self._progress(phase, details)
        elif kind == m.NEEDS and not self._needs.done():
            self._needs.set_result(m.decode(Needs, body))
        elif kind == m.LOADED:
            loaded = m.decode(m.Loaded, body)
            if not self._load.done():
                self._load.set_result(loaded)
        elif kind == m.LOAD_FAILED:
            self.failed_itself = True
            self._fail_load(m.error(m.decode(m.Failure, body)))
        else:
            raise ValueError(kind)

    def _fail_load(self, error: InferdError) -> None:
        if not self._load.done():
            self._load.set_exception(error)
            self._load.exception()  # otherwise asyncio warns of it if the caller was cancelled

    # The watch.

    def _beat_soon(self) -> None:
        """Ensures that the process is next checked within a second."""
        now = self._loop.time()
        if self._beat is None or self._beat_due > now + _BUSY_BEAT_SECS:
            self._arm_beat(_BUSY_BEAT_SECS)

    def _arm_beat(self, seconds: float) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._beat_due = self._loop.time() + seconds
        self._beat = self._loop.call_at(self._beat_due, self._look)

    def _look(self) -> None:
        if self._link.closed:
            return
        now, patience = self._loop.time(), self._patience
        if self._asked is None:
            self._asked = now
            self._link.send(m.PING)
        else:
            self._asked += max(0.0, now - self._beat_due - _BUSY_BEAT_SECS)  # the daemon itself was held up
        if self._waits is not None:
            waits = waits_of(self.pid)
            waited = max((waits[key] - self._waits.get(key, 0) for key in waits), default=0) / 1e9
            self._asked = min(now, self._asked + waited)
            self._step_waited += waited
            self._waits = waits
        silent, step = now - self._asked, self._pulse.busy_ms / 1e3 - self._step_waited
        predicted = self._pulse.predicted_ms / 1e3
        most = max(patience.hang_secs, patience.predicted_factor * predicted)
        quiet = max(silent, step)
        slow = max(silent, step - predicted) >= patience.slow_secs
        if slow and not self.slow_secs:
            _log.warn("engine_slow", engine=self.name, seconds=round(quiet, 1))
            self._waits, self._step_waited = waits_of(self.pid), 0.0  # only a slow process is examined
        elif not slow:
            self._waits, self._step_waited = None, 0.0
        self.slow_secs = quiet if slow else 0.0
        if silent >= patience.hang_secs or step >= most:
            self.kill(f"it gave no sign of life for {quiet:.0f} s")
            return
        busy = self._jobs or not self._load.done() or self._asked != now
        self._arm_beat(min(_BUSY_BEAT_SECS if busy else _IDLE_BEAT_SECS, patience.hang_secs / 3))

    # The end.

    def kill(self, reason: str) -> None:
        """Kills the process. ``on_exit`` gets the first ``reason``."""
        self._reason = self._reason or reason
        self._spawned.kill()

    async def close(self) -> None:
        """Ends the process and waits for its end (see :meth:`Spawned.end`)."""
        self._reason = self._reason or "the daemon has no more use for it"
        self._link.close()
        if not await self._spawned.end():
            _log.error("engine_stays", engine=self.name, pid=self.pid)

    def _hung_up(self) -> None:
        """Called when the process has closed the link or sent a malformed message. Kills the process if it
        does not end by itself."""
        self._loop.call_later(END_SECS, self.kill, "it closed its link")

    def _exited(self, ended: asyncio.Future[int]) -> None:
        self._link.drain()
        self._link.close()
        if self._beat is not None:
            self._beat.cancel()
        code = ended.result()
        reason = self._reason or ending(code)
        self.failed_itself |= not self._reason and code < 0 and code != -signal.SIGKILL
        kind = ModelError if self._answered else NeverAnswered
        self._fail_load(kind(f"the engine process ended while it loaded the model: {reason}"))
        for receiver in list(self._jobs.values()):
            receiver.lost()
        self._jobs.clear()
        if where := self._spawned.crash_places():
            _log.error("engine_crashed", engine=self.name, pid=self.pid, reason=reason, where=where[:8])
        self._on_exit(reason)
