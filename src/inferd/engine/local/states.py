"""Moves the KV caches of earlier prompts (the states) between an engine process and the daemon's files.

When the engine starts, the daemon tells it which files exist. If a request begins with the tokens of a file,
the engine asks the daemon for the descriptor of the file. Only this request waits. To save a state, the
engine writes it to an anonymous file in memory and sends the descriptor. The daemon saves one state at a
time. The engine opens no file and knows no path.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from inferd import __version__
from inferd.engine.backend import Capabilities
from inferd.engine.local.child import messages as m
from inferd.engine.local.child.descriptors import close_all

if TYPE_CHECKING:
    from inferd.engine.local._llama import Engine, LeavingState
    from inferd.engine.local.child.process import EngineProcess

FLUSH_SECS = 5.0
"""The time limit for saving the states of a closed model."""
FLUSH_STEP_SECS = 2.0
"""The time limit for the engine to send its next state."""

Send = Callable[[int, int, bytes, Sequence[int]], None]


class EngineStates:
    """Runs in the engine process: asks the daemon for states, and sends states to the daemon. ``wake`` and
    ``receive`` run on the event loop."""

    def __init__(self, engine: Engine, send: Send, idle_ms: int) -> None:
        self._engine = engine
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._working: set[asyncio.Future[None]] = set()
        engine.open_files(idle_ms)

    def wake(self) -> None:
        """Asks the daemon for the files that the token loop wants, and sends the next state to save, if
        any."""
        for number in self._engine.files_wanted():
            self._send(m.WANTED, number, b"", ())
        state = self._engine.leaving()
        if state is not None:
            self._work(lambda: self._leave(state))
        if self._engine.files_flushed():
            self._send(m.SAVE, 0, b"", ())

    def _leave(self, state: LeavingState) -> None:
        fd = m.memory_file()
        if not state.write(fd):
            os.close(fd)
            self._engine.file_saved(0, ())
            return
        body = m.encode(
            m.LeavingState(
                scope=state.scope,
                session=state.session,
                tokens=array.array("i", state.tokens).tobytes(),
                replaces=state.replaces,
            )
        )
        self._loop.call_soon_threadsafe(self._send, m.SAVE, 0, body, (fd,))

    def receive(self, kind: int, number: int, body: bytes, fds: Sequence[int]) -> None:
        if kind == m.KEPT:
            kept = m.decode(m.KeptState, body)
            self._engine.file_kept(
                kept.number,
                array.array("i", kept.tokens),
                kept.size,
                scope=kept.scope,
                session=kept.session,
                usable=kept.usable,
            )
        elif kind == m.STATE:
            self._work(lambda: self._read(number, body, fds))
        elif kind == m.SAVED:
            self._engine.file_saved(*m.decode(tuple[int, list[int]], body))
        elif kind == m.FLUSH:
            self._engine.flush_files()

    def _read(self, number: int, body: bytes, fds: Sequence[int]) -> None:
        offset, size = m.STATE_BODY.unpack(body) if fds else (0, 0)
        try:
            self._engine.file_delivered(number, fds[0] if fds else -1, offset, size)
        finally:
            close_all(fds)

    def _work(self, work: Callable[[], None]) -> None:
        task = self._loop.run_in_executor(None, work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)


class StateStore(Protocol):
    """The files with the states of one model. Every method blocks, except ``bytes`` and ``removed``."""

    def bytes(self) -> int:
        """Returns the size of all files in bytes."""

    def removed(self) -> int:
        """Returns how many files were removed because they were damaged or had an invalid authentication
        code."""

    def open(self, made_by: str) -> list[m.KeptState]:
        """Returns the existing files. ``made_by`` is the fingerprint of the build, the device and the
        context. Files with another fingerprint are not ``usable``."""

    def fetch(self, number: int) -> tuple[int, int, int] | None:
        """Returns the descriptor of a file, and the offset and size of its state, or ``None`` if the file is
        damaged."""

    def save(self, state: m.LeavingState, fd: int) -> tuple[int, list[int]]:
        """Saves a state. Returns the number that identifies the new file, or 0 if no file was made, and a
        list of the numbers that identify the deleted files."""


class DaemonStates:
    """Runs in the daemon: delivers and saves the states of one engine process. All methods run on the event
    loop."""

    def __init__(self, store: StateStore, process: EngineProcess) -> None:
        self._store = store
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._working: set[asyncio.Task[None]] = set()
        self._saving = False
        self._fetching: set[int] = set()
        self._flushed = asyncio.Event()
        self._progress = asyncio.Event()
        process.on_state = self._receive

    async def open(self, load: m.Load, capabilities: Capabilities) -> None:
        """Tells the process which files exist."""
        made_by = await self._loop.run_in_executor(None, fingerprint, load, capabilities)
        for kept in await self._loop.run_in_executor(None, self._store.open, made_by):
            self._process.tell_states(m.KEPT, 0, m.encode(kept))

    async def flush(self) -> None:
        """Saves every state that is not in a file yet. Takes at most ``FLUSH_SECS`` plus the time to finish
        the last write.

        ``FLUSH_STEP_SECS`` limits how long the engine may take to send a state. A write to disk that has
        begun is always finished.
        """
        self._process.tell_states(m.FLUSH)
        give_up = self._loop.time() + FLUSH_SECS
        while not self._flushed.is_set() and (self._saving or self._loop.time() < give_up):
            self._progress.clear()
            try:
                limit = None if self._saving else FLUSH_STEP_SECS
                await asyncio.wait_for(self._progress.wait(), limit)
            except asyncio.TimeoutError:
                return

    def _receive(self, kind: int, number: int, body: bytes, fds: list[int]) -> None:
        self._progress.set()
        if kind == m.WANTED:
            if number not in self._fetching:
                self._fetching.add(number)
                self._work(self._fetch(number))
        elif not fds:
            self._flushed.set()
        elif self._saving:
            close_all(fds)
            self._process.kill("it sent a second state before the first was saved")
        else:
            self._saving = True
            self._work(self._save(body, fds))

    def _work(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _fetch(self, number: int) -> None:
        found = await self._loop.run_in_executor(None, self._store.fetch, number)
        self._fetching.discard(number)
        if found is None:
            self._process.tell_states(m.STATE, number)
        else:
            fd, offset, size = found
            self._process.tell_states(m.STATE, number, m.STATE_BODY.pack(offset, size), (fd,))

    async def _save(self, body: bytes, fds: list[int]) -> None:
        try:
            state = m.decode(m.LeavingState, body)
            number, gone = await self._loop.run_in_executor(None, self._store.save, state, fds[0])
        except msgspec.MsgspecError:
            self._process.kill("it sent an unknown message")
            return
        finally:
            close_all(fds)
            self._saving = False
            self._progress.set()
        self._process.tell_states(m.SAVED, 0, m.encode((number, gone)))


def fingerprint(load: m.Load, capabilities: Capabilities) -> str:
    """Returns a digest of inferd's version and build, the device, the size of the context, flash attention
    and the type of the KV cache. A state depends on these and on the model's file. The size of the context
    matters because some models scale positions differently in a long context."""
    parts = (
        __version__,
        _build(),
        capabilities.accelerator,
        capabilities.n_ctx,
        load.flash_attention,
        load.kv_cache_type,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@lru_cache(maxsize=1)
def _build() -> str:
    """Returns the digest of the compiled engine module, or ``""`` if it cannot be read."""
    found = importlib.util.find_spec("inferd.engine.local._llama")
    with contextlib.suppress(OSError):
        if found is not None and found.origin is not None:
            return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
    return ""
