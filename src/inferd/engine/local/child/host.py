"""The engine process of one model: ``python -m inferd.engine.local.child.host``.

llama.cpp runs in this process, not in the daemon. The daemon starts the process with a socket as its standard
input. Over the socket, the daemon sends the model's descriptors and the requests, and receives frames,
results and log lines (:mod:`inferd.engine.local.child.messages`). The process ends when the daemon's end of
the socket closes, so no engine outlives its daemon.

For a debugger, pass a model file as the argument: the program loads the file, answers each line of its
standard input, and runs without a sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import queue
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from inferd import coredump, log
from inferd.engine.backend import Needs, Stream
from inferd.engine.events import Done, Frames, Text, Thinking, Usage
from inferd.engine.local import _llama
from inferd.engine.local.child import cage
from inferd.engine.local.child import messages as m
from inferd.engine.local.child.descriptors import close_all
from inferd.engine.local.child.link import Link, receive
from inferd.engine.local.child.load import (
    analyse_template,
    cage_profile,
    limit_memory,
    limit_time,
    load_model,
    preload_modules,
    worker_ports,
)
from inferd.engine.local.embedding import EmbeddingModel
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.requests import EmbedRequest, GenerateRequest, Message, RankRequest
from inferd.errors import EmbedUnsupported, RerankUnsupported
from inferd.log import library

_log = log.get("engine")


class Host:
    """The engine's end of the link. Everything runs on the event loop, except loading the model."""

    def __init__(self, sock: socket.socket, load: m.Load, fds: list[int], held: dict[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = Link(sock, self._receive, _leave)
        self._model: LlamaCpp | EmbeddingModel | None = None
        self._jobs: dict[int, _Job] = {}
        self._granted: queue.SimpleQueue[m.Granted] = queue.SimpleQueue()
        self._load = self._loop.create_task(self._load_model(load, fds, held))

    def _receive(self, kind: int, job: int, body: bytes, fds: list[int]) -> None:
        if kind == m.GENERATE:
            self._begin(job, self._generate(job, m.unpack_generate(body, fds)))
        elif kind == m.EMBED:
            self._begin(job, self._embed(job, m.unpack(EmbedRequest, body, fds)[0]))
        elif kind == m.RANK:
            self._begin(job, self._rank(job, m.unpack(RankRequest, body, fds)[0]))
        elif kind in (m.KEPT, m.STATE, m.SAVED, m.FLUSH):
            if isinstance(self._model, LlamaCpp) and self._model.states is not None:
                self._model.states.receive(kind, job, body, fds)
            else:
                close_all(fds)
        elif kind == m.GRANTED:
            self._granted.put(m.decode(m.Granted, body))
        elif kind == m.PING:
            self._link.send(m.PONG, 0, m.encode(self._pulse()))
        elif job in self._jobs:
            if kind == m.CREDIT:
                self._jobs[job].credit(*m.CREDIT_BODY.unpack(body))
            elif kind == m.CANCEL:
                self._jobs[job].cancel()
            elif kind == m.DROP:
                self._jobs[job].drop()

    def _pulse(self) -> m.Pulse:
        if self._model is None:
            return m.Pulse()
        streams = ((number, job.stream) for number, job in self._jobs.items() if job.stream is not None)
        read = {number: share for number, stream in streams if (share := stream.prompt_read()) is not None}
        return replace(self._model.pulse(), read=read)

    async def _load_model(self, load: m.Load, fds: list[int], held: dict[str, str]) -> None:
        def send(kind: int, *values: object) -> None:
            self._loop.call_soon_threadsafe(self._link.send, kind, 0, m.encode(values))

        def progress(phase: str, details: Mapping[str, object]) -> None:
            send(m.PROGRESS, phase, details)

        def ask(needs: Needs) -> m.Granted:
            send(m.NEEDS, *needs)
            return self._granted.get()

        log.pass_on(
            load.log_level,
            lambda record: send(m.LOG, record[1], record[2], record[3], _plain(record[4])),
        )
        try:
            if load.template_only:
                analysed = await self._loop.run_in_executor(None, analyse_template, load, fds[0])
                self._link.send(m.LOADED, 0, m.encode(m.Loaded(cage=held, template=analysed)))
                return
            model = await self._loop.run_in_executor(None, load_model, load, fds, progress, ask)
            await model.start()
        except Exception as error:
            _tell(error)
            self._link.send(m.LOAD_FAILED, 0, m.encode(m.failure(error)))
            return
        self._model = model
        gc.freeze()  # a collection of all modules would hold up every request for milliseconds
        if load.files and isinstance(model, LlamaCpp):
            model.keep_states(self._link.send, load.file_after_ms)
        template = model.template if isinstance(model, LlamaCpp) else None
        loaded = m.Loaded(capabilities=model.capabilities(), cage=held, template=template, gpus=model.gpus)
        self._link.send(m.LOADED, 0, m.encode(loaded))

    # Jobs.

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        job = self._jobs[number] = _Job(self._loop)
        job.task = self._loop.create_task(work)
        # Not in the task itself: a task that is cancelled before its first step never runs.
        job.task.add_done_callback(lambda task: self._end(number, job, task))

    def _end(self, number: int, job: _Job, task: asyncio.Task[None]) -> None:
        """Sends the last message of a job that was cancelled or failed."""
        del self._jobs[number]
        if task.cancelled():
            if job.dropped:
                self._link.send(m.GONE, number)
            else:
                self._link.send(m.DONE, number, m.encode(Done("cancelled", Usage(0, 0))))
        elif (error := task.exception()) is not None:
            _tell(error)
            self._link.send(m.FAILED, number, m.encode(m.failure(error)))

    async def _generate(self, number: int, request: GenerateRequest) -> None:
        job = self._jobs[number]
        model = self._loaded()
        if isinstance(model, LlamaCpp):
            stream = await model.generate(request, job.cancellation)
        else:
            stream = await model.generate(request)
        send = self._link.send
        job.stream = stream
        try:
            async for event in stream:
                if isinstance(event, Frames):
                    send(m.FRAMES, number, event.data)
                    job.sent += len(event.data)
                elif isinstance(event, Done):
                    send(m.DONE, number, m.encode(event))
                    return
                elif isinstance(event, Text | Thinking):
                    text = event.text.encode()
                    send(m.TEXT if isinstance(event, Text) else m.THINKING, number, text)
                    job.sent += len(text)
                else:
                    send(m.TOOL_USE, number, m.encode(event.call))
                if job.sent >= m.WINDOW_BYTES:
                    await job.room()
        finally:
            stream.close()
        raise RuntimeError("the stream ended without its end")

    async def _embed(self, number: int, request: EmbedRequest) -> None:
        model = self._loaded()
        if not isinstance(model, EmbeddingModel):
            raise EmbedUnsupported(f"backend {model.name!r} cannot embed")
        made = await model.embed(request)
        self._link.send(m.VECTORS, number, *m.pack((made.width, made.input_tokens), [made.vectors]))

    async def _rank(self, number: int, request: RankRequest) -> None:
        model = self._loaded()
        if not isinstance(model, EmbeddingModel):
            raise RerankUnsupported(f"backend {model.name!r} cannot rerank")
        made = await model.rank(request)
        self._link.send(m.SCORES, number, *m.pack((made.scores, made.input_tokens)))

    def _loaded(self) -> LlamaCpp | EmbeddingModel:
        if self._model is None:
            raise RuntimeError("a request came before the model was loaded")
        return self._model


class _Job:
    """A running request.

    ``sent`` is the number of bytes of events that were sent to the daemon and not yet passed on to the
    client.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.task: asyncio.Task[None] | None = None
        self.stream: Stream | None = None
        self.cancellation = _llama.Cancellation()
        """Ends the preparation at once. A cancelled task ends it later: a round of a busy event loop takes
        milliseconds."""
        self.sent = 0
        self.dropped = False
        self._room: asyncio.Future[None] | None = None

    def credit(self, size: int) -> None:
        self.sent -= size
        self._wake()

    async def room(self) -> None:
        """Waits while ``sent`` is ``WINDOW_BYTES`` or more."""
        while self.sent >= m.WINDOW_BYTES:
            self._room = self._loop.create_future()
            await self._room

    def cancel(self) -> None:
        """Ends the job soon. Cancels the job's stream, or its task if the job has no stream yet."""
        if self.stream is not None:
            self.stream.cancel()
        elif self.task is not None:
            self.cancellation.cancel()
            self.task.cancel()

    def drop(self) -> None:
        self.dropped = True
        self.cancellation.cancel()
        if self.task is not None:
            self.task.cancel()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


def _tell(error: BaseException) -> None:
    """Logs the class and the source line of an unexpected exception."""
    if m.failure(error).kind == "BackendInternal":
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
        _log.error("engine_error", error=type(error).__name__, where=where)


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    """Converts the fields of a log record to types that msgpack can encode."""
    kept = (type(None), bool, int, float, str, list, dict)
    return {name: value if isinstance(value, kept) else str(value) for name, value in fields.items()}


def _leave() -> None:
    """Exits without cleanup, because the daemon has closed the link and nothing here needs saving."""
    os._exit(0)


def _event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Returns uvloop's factory if uvloop is installed, else asyncio's. Imports the modules of uvloop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(sock: socket.socket, load: m.Load, fds: list[int], held: dict[str, str]) -> None:
    host = Host(sock, load, fds, held)
    await asyncio.get_running_loop().create_future()
    del host


def serve() -> None:
    """Serves the daemon over the socket that is this process's standard input. The process ends when the
    daemon closes the socket."""
    cage.die_with_parent(os.getppid())
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):  # from a terminal or systemd; the daemon ends this process
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    new_event_loop = _event_loop_factory()
    coredump.forbid()  # a spare process may wait for long, and no program of the same user may attach to it
    try:
        _, _, body, fds = receive(sock)
    except EOFError:
        return
    coredump.permit_reading()  # until the sandbox: GPU drivers and the modules below open files in /proc/self
    load = m.decode(m.Load, body)
    preload_modules(load)
    # Enter the cage here: the process has one thread, has read no byte of the model, and no event loop uses
    # io_uring.
    profile = cage_profile(load)
    held = cage.enter(profile, fds, worker_ports(load))
    limit_memory(load, profile)
    if load.template_only:
        limit_time()
    # Threads that prepare requests yield the GIL to the event loop after 0.1 ms, not after 5.
    sys.setswitchinterval(0.0001)
    loop = new_event_loop()
    library.capture(loop)
    loop.run_until_complete(_serve(sock, load, fds, held))


async def _answer_lines(path: Path) -> None:
    def progress(phase: str, details: Mapping[str, object]) -> None:
        sys.stderr.write(f"{phase} {dict(details)}\n")

    with path.open("rb") as file:
        load = m.Load(name="debug", model=path.name, path=str(path), n_parallel=1, cage="off", log_level=1)
        model = load_model(load, [file.fileno()], progress)
    await model.start()
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = GenerateRequest(messages=(Message("user", line.strip()),), typed=True)
            async for event in await model.generate(request):
                sys.stdout.write(f"{event}\n")
    finally:
        await model.close()


def main(arguments: list[str]) -> int:
    if not arguments:
        serve()
    else:
        activity = log.setup("debug", None)
        with contextlib.closing(activity):
            asyncio.run(_answer_lines(Path(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
