"""An engine process that hangs: it counts as dead, and blocks neither a cancel nor the end of the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from inferd.engine.local.child import messages as m
from inferd.engine.local.child import process, spawned
from inferd.engine.local.child.process import EngineProcess, Patience
from inferd.engine.local.child.supervisor import HostedModel
from inferd.errors import (
    EngineEnded,
    ModelError,
    NotReady,
    Unavailable,
)
from tests.daemon_process import is_gone
from tests.in_process import PATIENCE_SECS, open_files, until
from tests.unit.test_engine_process import ask, begin, finish, hosted, pid_of


def wait_no_longer(model: HostedModel) -> None:
    """Shortens the time limits of the present, stopped process, but not of the next one."""
    assert model._serving is not None
    model._serving._patience = Patience(slow_secs=0.1, hang_secs=0.3)


def used_by_thread(pid: int) -> dict[int, int]:
    """The processor time of each thread but the first, in ns."""
    tasks = [task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
    return {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in tasks}


async def loop_thread_of(model: HostedModel) -> int:
    """The thread of the token loop: the thread with the most work during an answer."""
    await finish(await model.generate(ask(max_tokens=1)))
    before = used_by_thread(pid_of(model))
    await finish(await model.generate(ask(max_tokens=100)))
    after = used_by_thread(pid_of(model))
    return max(after, key=lambda thread: after[thread] - before.get(thread, 0))


# A debugger can stop a single thread, a signal only all of them.
_STOP_THREAD = """
import ctypes, os, sys
SEIZE, INTERRUPT, ALL = 0x4206, 0x4207, 0x40000000
thread = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
trace = lambda request: libc.ptrace(ctypes.c_long(request), ctypes.c_long(thread), None, None)
if trace(SEIZE):
    sys.exit(os.strerror(ctypes.get_errno()))
print("attached", flush=True)
sys.stdin.readline()
trace(INTERRUPT)
os.waitpid(thread, ALL)
print("stopped", flush=True)
os.waitpid(thread, ALL)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may trace the process, which cannot be dumped")
@pytest.mark.parametrize("running", [True, False])
async def test_a_stopped_thread_counts_as_hung(running: bool) -> None:
    async with hosted() as model:
        first, thread = pid_of(model), await loop_thread_of(model)
        tracer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _STOP_THREAD, str(thread), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert tracer.stdin is not None
        assert tracer.stdout is not None
        assert await tracer.stdout.readline() == b"attached\n", await tracer.communicate()
        # Not earlier, or the answer could end before its thread is stopped.
        stream = await begin(model, ask()) if running else await model.generate(ask())
        tracer.stdin.write(b"\n")
        assert await tracer.stdout.readline() == b"stopped\n", await tracer.communicate()
        wait_no_longer(model)
        with pytest.raises(EngineEnded, match="no sign of life"):
            await finish(stream)
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"
        assert pid_of(model) != first
        await tracer.communicate()


async def test_a_stopped_process_counts_as_hung() -> None:
    async with hosted() as model:
        stream = await begin(model, ask())
        first = pid_of(model)
        os.kill(first, signal.SIGSTOP)
        wait_no_longer(model)
        with pytest.raises(EngineEnded, match="no sign of life"):
            await finish(stream)
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"
        assert pid_of(model) != first


async def test_a_process_that_waits_for_a_processor_does_not_count_as_hung(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stopped process stands for a starved one, so that the test does not depend on the machine's load."""
    looks, starved = 0, True

    def waits(pid: int) -> dict[str, int]:
        nonlocal looks
        looks += 1
        return {"1": time.monotonic_ns()} if starved else {}

    monkeypatch.setattr(process, "waits_of", waits)
    async with hosted() as model:
        stream = await begin(model, ask())
        first = pid_of(model)
        os.kill(first, signal.SIGSTOP)
        wait_no_longer(model)
        while looks < 10:
            assert pid_of(model) == first
            await asyncio.sleep(0.05)
        starved = False
        with pytest.raises(EngineEnded, match="no sign of life"):
            await finish(stream)


# An engine process that answers one ping after the other with the pulses PULSES, and then with the last one.
PULSING = """
import socket, struct
link, pulses, header = socket.socket(fileno=0), list(PULSES), struct.Struct("<IIBB")
while head := link.recv(header.size, socket.MSG_WAITALL):
    size, job, kind, fds = header.unpack(head)
    link.recv(size, socket.MSG_WAITALL)
    if kind == PING:
        body = pulses.pop(0) if pulses[1:] else pulses[0]
        link.sendall(header.pack(len(body), 0, PONG, 0) + body)
"""


async def test_the_wait_of_one_slow_step_does_not_excuse_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All times are in thousands of seconds, so that those of the test itself do not count."""
    waiting = m.Pulse(steps=1, busy_ms=12e6)  # of which it has waited 10 for a processor
    pulses = [m.Pulse(steps=1, busy_ms=2e6), waiting, m.Pulse(steps=2, busy_ms=12e6)]
    program = PULSING.replace("PULSES", repr([m.encode(pulse) for pulse in pulses]))
    (tmp_path / "pulsing.py").write_text(program.replace("PING", str(m.PING)).replace("PONG", str(m.PONG)))
    monkeypatch.setattr(spawned, "PROGRAM", "pulsing")
    monkeypatch.setattr(spawned, "environment", lambda: {"PYTHONPATH": str(tmp_path)})
    monkeypatch.setattr(process, "_BUSY_BEAT_SECS", 0.01)
    monkeypatch.setattr(process, "waits_of", lambda pid: {"1": 0 if engine._pulse == pulses[0] else 10**13})
    engine = EngineProcess("n", lambda reason: None, Patience(slow_secs=1e3, hang_secs=5e3))
    load = engine.load(m.Load(name="n", model="m", path="p"), (), lambda phase, details: None)
    try:
        with pytest.raises(ModelError, match="no sign of life for 12000 s"):
            await asyncio.wait_for(load, PATIENCE_SECS)
    finally:
        engine.kill("the test is over")


def test_the_system_reports_how_long_each_thread_has_waited() -> None:
    assert str(os.getpid()) in process.waits_of(os.getpid())
    assert process.waits_of(2**22 + 1) == {}


async def test_a_cancel_is_answered_even_if_the_process_hangs() -> None:
    async with hosted() as model:
        stream = await begin(model, ask())
        os.kill(pid_of(model), signal.SIGSTOP)
        stream.cancel()
        assert (await finish(stream)).stop_reason == "cancelled"


async def test_a_stopped_process_cannot_block_the_shutdown() -> None:
    async with hosted() as model:
        pid = pid_of(model)
        os.kill(pid, signal.SIGSTOP)
        await model.close()
        assert is_gone(pid)
        with pytest.raises((NotReady, Unavailable)):
            await model.generate(ask())


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
async def test_a_cancelled_close_still_ends_the_process_and_closes_its_descriptors() -> None:
    before = open_files()
    engine = EngineProcess("n", lambda reason: None, Patience())
    os.kill(engine.pid, signal.SIGSTOP)  # so that it cannot end by itself
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    closing.cancel()
    try:
        await until(lambda: is_gone(engine.pid) and open_files() == before)
    finally:
        engine.kill("the test is over")


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
async def test_a_cancelled_close_of_a_model_closes_its_files() -> None:
    before = open_files()
    async with hosted() as model:
        pid, files = pid_of(model), {open_files()[fd] for fd in model._fds}
        os.kill(pid, signal.SIGSTOP)
        closing = asyncio.create_task(model.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait((closing,))
        assert files.isdisjoint(open_files().values())
        # The loop hears of the process' end after the process is gone, and then closes the pipe.
        await until(lambda: is_gone(pid) and open_files() == before)
