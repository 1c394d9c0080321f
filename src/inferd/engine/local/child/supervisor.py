"""The daemon's :class:`~inferd.engine.backend.Backend` for a model in an engine process.

This supervisor restarts the process when the process dies or hangs: the first time at once, then with
increasing back-off. Running requests fail with an error that tells the client to send them again. Queued
requests wait for the new process. A request during which two processes have died is a suspect, and runs alone
from then on. If this request was the only running one when the second process or a later one died, the
request is convicted: it is refused for a time. Three deaths within a minute without a conviction open the
circuit breaker.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from inferd import log
from inferd.engine.backend import Backend, Capabilities, EngineState, GpuRoom, Grant, Needs, Stream
from inferd.engine.events import Embeddings, Ranking
from inferd.engine.local.child import messages as m
from inferd.engine.local.child.jobs import EngineRequest, Job, JobQueue
from inferd.engine.local.child.process import EngineProcess, NeverAnswered, Patience
from inferd.engine.local.child.spawned import Spawned
from inferd.engine.local.child.stream import HostedStream
from inferd.engine.local.child.suspects import Suspects
from inferd.engine.local.states import DaemonStates, StateStore
from inferd.engine.requests import EmbedRequest, GenerateRequest, Message, RankRequest
from inferd.errors import (
    BackendInternal,
    EmbedUnsupported,
    EngineEnded,
    InferdError,
    ModelError,
    NotReady,
    RerankUnsupported,
    Unavailable,
)
from inferd.progress import Progress, ignored

BACK_OFF_SECS = (0.0, 1.0, 5.0, 30.0)
HEALTHY_SECS = 10.0
"""After a process has served for this long, the back-off starts again from its first value."""
LOOP_DEATHS, LOOP_SECS = 3, 60.0
WORKER_SECS = 15.0
"""How long a restarted process waits for an RPC worker. The worker may be restarting too, because its end can
end the process."""

T = TypeVar("T")
Choose = Callable[[Needs], Awaitable[m.Granted]]
"""Waits until there is room for a model, and returns the answer to its process."""

_log = log.get("engine")


class HostedModel(Backend):
    """The model of ``load``. This object owns ``fds``, the model's verified files, and passes them to each
    process that it starts. ``check_files`` raises ModelError if a file has changed. ``system`` is the system
    prompt for requests without a system message. ``states`` keeps the KV caches of earlier prompts in files,
    which a later daemon can use, too. ``estimate_bytes`` is the memory that an engine process of the model
    may need. ``on_loaded`` is awaited after the first load. ``loading`` makes a context manager for each
    load. Its value is a program that is already running, or ``None``."""

    kind = "llamacpp"

    def __init__(
        self,
        load: m.Load,
        fds: Sequence[int],
        progress: Progress,
        check_files: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
        system: str = "",
        states: StateStore | None = None,
        estimate_bytes: int = 0,
        on_loaded: Callable[[m.Loaded], Awaitable[None]] | None = None,
        loading: Callable[[], AbstractContextManager[Spawned | None]] = contextlib.nullcontext,
    ) -> None:
        self.name = load.name
        self.model = load.model
        self._settings = replace(load, files=states is not None)
        self._store = states
        self._states: DaemonStates | None = None
        self._fds = list(fds)
        self._progress = progress
        self._check_files = check_files
        self._system = system
        self._estimate_bytes = estimate_bytes
        self._on_loaded = on_loaded
        self._loading = loading
        self._file_bytes = sum(os.fstat(fd).st_size for fd in fds)
        self._patience = patience or Patience()
        self._loaded: m.Loaded | None = None
        self._process: EngineProcess | None = None
        self._serving: EngineProcess | None = None
        self._ending: EngineProcess | None = None
        """The process that :meth:`rest` ends. It holds its memory until it has ended."""
        self._jobs = JobQueue(load.n_parallel)
        self._suspects = Suspects()
        self._restarting: asyncio.Task[None] | None = None
        self._deaths: deque[float] = deque(maxlen=LOOP_DEATHS)
        self._in_a_row = self._restarts = 0
        self._served_since = 0.0
        self._last_reason = self._broken = ""
        self._resting = self._closed = False
        self._on_crash_loop: Callable[[], None] = lambda: None
        self._grant: Grant | None = None
        self._gpu_bytes: Mapping[str, int] = {}

    def on_crash_loop(self, call: Callable[[], None]) -> None:
        self._on_crash_loop = call

    def ask_first(self, grant: Grant, contexts: Sequence[int] = (), *, always: bool = False) -> bool:
        load = self._settings
        if load.n_gpu_layers == 0 or load.force_backend == "cpu" or load.workers:
            return False
        self._grant = grant
        self._settings = replace(load, contexts=tuple(contexts) or load.contexts, asks=always)
        return True

    async def start(self) -> None:
        """Starts the process and loads the model. Raises ModelError if that fails, and the errors of the
        registered grant."""
        grant = None if self._grant is None else functools.partial(self._granted, self._grant)
        self._grant = None  # it may refer to the models that give way, which could then not be freed
        self._loaded = await self._launch(self._progress, grant)
        if self._on_loaded is not None:
            await self._on_loaded(self._loaded)

    async def _granted(self, grant: Grant, needs: Needs) -> m.Granted:
        """Waits until there is room for the model, and returns the answer to its process. A later process
        loads the same size."""
        granted = await grant(needs)
        if isinstance(granted, GpuRoom):
            return m.Granted(room=granted.gpus)
        if granted is not None:
            self._estimate_bytes, self._gpu_bytes = granted.here, granted.gpus
            self._settings = replace(self._settings, n_ctx=granted.n_ctx)
            if granted.layers >= 0 and granted.layers != self._settings.n_gpu_layers:
                _log.warn("gpu_too_small", backend=self.name, gpu_layers=granted.layers)
                self._settings = replace(self._settings, n_gpu_layers=granted.layers)
        return m.Granted(n_ctx=self._settings.n_ctx, layers=self._settings.n_gpu_layers)

    def ready(self) -> bool:
        return self._loaded is not None and not self._closed and not self._broken

    def alive(self) -> bool:
        return not self._broken

    def capabilities(self) -> Capabilities:
        if self._loaded is None:
            raise NotReady
        return self._loaded.capabilities

    def engine_state(self) -> EngineState:
        process = self._process or self._ending
        rests = self._resting and process is None
        resident, private = (0, 0) if process is None else process.memory_bytes()
        return EngineState(
            pid=process.pid if process is not None else 0,
            memory_bytes=resident,
            file_bytes=self._file_bytes,
            restarts=self._restarts,
            last_end=self._last_reason,
            silent_secs=round(process.slow_secs, 1) if process is not None else 0.0,
            problem=self._broken,
            cage=self._loaded.cage if self._loaded is not None else {},
            cache_disk_bytes=self._store.bytes() if self._store is not None else 0,
            cache_files_removed=self._store.removed() if self._store is not None else 0,
            estimate_bytes=0 if rests else self._estimate_bytes,
            private_bytes=private,
            gpu_bytes={} if rests else self._gpu_bytes,
            loaded=self._serving is not None or self._ending is not None,
        )

    # The process.

    async def _launch(self, progress: Progress, grant: Choose | None = None) -> m.Loaded:
        with self._loading() as spare:
            if spare is not None:
                with contextlib.suppress(NeverAnswered):  # the spare had died
                    return await self._launch_in(spare, progress, grant)
            return await self._launch_in(Spawned(), progress, grant)

    async def _launch_in(self, program: Spawned, progress: Progress, grant: Choose | None) -> m.Loaded:
        process = EngineProcess(
            self.name, lambda reason: self._died(process, reason), self._patience, program
        )
        self._process = process
        try:
            # A process that follows another loads the same size without asking: there was room for it.
            load = self._settings if grant is not None else replace(self._settings, contexts=())
            loaded = await process.load(load, self._fds, progress, grant)
            if self._store is not None and loaded.capabilities.v2:
                self._states = DaemonStates(self._store, process)
                await self._states.open(self._settings, loaded.capabilities)
            if not process.running:
                raise ModelError("the engine process ended as soon as it had loaded the model")
        except BaseException:
            self._process = None
            await process.close()
            raise
        self._gpu_bytes = loaded.gpus
        self._served_since = time.monotonic()
        _log.info("engine_started", engine=self.name, pid=process.pid, cage=loaded.cage)
        self._serving = process
        self._jobs.serve(process)
        return loaded

    def _died(self, process: EngineProcess, reason: str) -> None:
        if process is not self._serving:
            return  # already replaced, or :meth:`_launch` reports it
        self._process = self._serving = None
        self._jobs.serve(None)
        self._last_reason = reason
        now = time.monotonic()
        if now - self._served_since >= HEALTHY_SECS:
            self._in_a_row = 0
        running = self._jobs.take_running()
        convicted = self._suspects.engine_died([job.request for job in running], now)
        _log.error("engine_died", engine=self.name, pid=process.pid, reason=reason, requests=len(running))
        for job in running:
            job.fail(
                EngineEnded(
                    f"the engine of {self.model!r} ended while it worked on this request ({reason}) and is"
                    " started again; send the request again"
                )
            )
        if convicted:
            self._deaths.clear()
            self._in_a_row = 0
            _log.warn("request_convicted", engine=self.name)
        else:
            self._deaths.append(now)
        if len(self._deaths) == LOOP_DEATHS and now - self._deaths[0] <= LOOP_SECS:
            self._deaths.clear()
            _log.error("engine_crash_loop", engine=self.name, deaths=LOOP_DEATHS)
            self._jobs.fail_waiting(
                lambda: Unavailable(
                    f"the engine of {self.model!r} ends again and again ({reason}); the log says more"
                )
            )
            self._on_crash_loop()
        self._restarting = asyncio.get_running_loop().create_task(self._restart())

    async def _restart(self) -> None:
        """Starts new processes, with back-off, until one serves."""
        while True:
            await asyncio.sleep(BACK_OFF_SECS[min(self._in_a_row, len(BACK_OFF_SECS) - 1)])
            self._in_a_row += 1
            self._restarts += 1
            try:
                self._check_files()
                self._settings = replace(self._settings, worker_absent_secs=WORKER_SECS)
                self._loaded = await self._launch(ignored)
            except (InferdError, OSError) as error:
                # Fail the queued requests now: the process may never start.
                self._broken = str(error)
                _log.error("engine_restart_failed", engine=self.name, error=str(error))
                self._jobs.fail_waiting(
                    lambda: Unavailable(f"the model cannot be loaded again: {self._broken}")
                )
            else:
                self._broken = ""
                return

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self.rest()
        finally:  # a cancelled caller does not come again
            self._jobs.fail_waiting(lambda: Unavailable("the backend is closing"))
            for fd in self._fds:
                os.close(fd)
            self._fds.clear()

    async def rest(self) -> None:
        self._resting = True
        self._jobs.serve(None)
        if self._restarting is not None and not self._restarting.done():
            self._restarting.cancel()
            await asyncio.wait((self._restarting,))  # no process serves now: a cancelled caller leaves none
        running = self._jobs.take_running()
        for job in running:
            job.fail(Unavailable("the backend is closing"))
        process, self._process, self._serving = self._process, None, None
        if process is not None:
            self._ending = process
            self._last_reason = "a reload needed its memory"
            # Nothing else refers to the process, so it must end even if the caller is cancelled.
            await asyncio.shield(self._end(process, flush=process.running and not running))

    async def _end(self, process: EngineProcess, *, flush: bool) -> None:
        try:
            if flush and self._states is not None:
                await self._states.flush()
            await process.close()
        finally:
            if self._ending is process:
                self._ending = None

    def wake(self) -> None:
        if self._resting:
            self._resting = False
            self._in_a_row = 0
            self._restarting = asyncio.get_running_loop().create_task(self._restart())

    # Requests.

    def job(self, request: EngineRequest) -> Job:
        """Makes the job of a request.

        Raises NotReady while the model is not loaded, and InvalidRequest if the request is convicted.
        """
        if not self.ready():
            raise NotReady
        return Job(self._jobs, request, alone=self._suspects.runs_alone(request, time.monotonic()))

    async def generate(self, request: GenerateRequest) -> Stream:
        if self._system and not any(message.role == "system" for message in request.messages):
            request = replace(request, messages=(Message("system", self._system), *request.messages))
        return HostedStream(self.job(request), self.believed)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        if not self.capabilities().embed:
            raise EmbedUnsupported(f"backend {self.name!r} cannot embed")
        (width, tokens), rows = await self._call(request, m.VECTORS, tuple[int, int])
        return Embeddings(bytes(rows), width, tokens)

    async def rank(self, request: RankRequest) -> Ranking:
        if not self.capabilities().rerank:
            raise RerankUnsupported(f"the model of backend {self.name!r} cannot rerank")
        (scores, tokens), _ = await self._call(request, m.SCORES, tuple[tuple[float, ...], int])
        return Ranking(scores, tokens)

    async def _call(self, request: EngineRequest, kind: int, result: type[T]) -> tuple[T, memoryview]:
        """Runs a request whose answer is a single packed message, and returns the answer."""
        job = self.job(request)
        try:
            await job.begin()
            answered, body, fds = await job.next()
            with self.believed():
                if answered == m.FAILED:
                    raise m.error(m.decode(m.Failure, body))
                if answered != kind:
                    raise ValueError(answered)
                return m.unpack(result, body, fds)
        finally:
            job.leave()

    @contextlib.contextmanager
    def believed(self) -> Iterator[None]:
        """A context manager in which a message is decoded. If the message is malformed, kills the process and
        raises BackendInternal."""
        try:
            yield
        except (msgspec.MsgspecError, ValueError) as error:
            if self._process is not None:
                self._process.kill("it sent an unreadable answer")
            raise BackendInternal("the engine sent an unreadable answer") from error
