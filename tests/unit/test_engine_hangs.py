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

from inferd.engine.local.child import process
from inferd.engine.local.child.process import Patience
from inferd.engine.local.child.supervisor import HostedModel
from inferd.errors import (
    EngineEnded,
    NotReady,
    Unavailable,
)
from tests.daemon_process import is_gone
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
