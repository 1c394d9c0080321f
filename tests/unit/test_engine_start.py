"""The start of an engine process: what it inherits from the daemon, and what happens if it fails."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from typing import Any

import pytest

from inferd.engine.local.child import spawned, supervisor
from inferd.engine.local.child.messages import Load
from inferd.engine.local.child.process import EngineProcess, Patience
from inferd.errors import ModelError
from inferd.progress import ignored
from tests.in_process import open_files, until
from tests.unit.test_engine_process import ask, finish, hosted, pid_of, restarts_of


async def test_a_signal_to_stop_does_not_end_a_process_that_starts() -> None:
    program = spawned.Spawned()
    for number in (signal.SIGINT, signal.SIGTERM):  # its interpreter has not started yet
        os.kill(program.pid, number)
    async with hosted(loading=lambda: nullcontext(program)) as model:
        assert pid_of(model) == program.pid


def test_an_engine_gets_no_key_of_an_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVIDIA_API_KEY", "LLAMA_API_KEY", "LLAMA_TOKEN", "NVIDIA_VISIBLE_DEVICES", "LC_ALL"):
        monkeypatch.setenv(name, "value")
    given = spawned.environment()
    assert not {"NVIDIA_API_KEY", "LLAMA_API_KEY", "LLAMA_TOKEN"} & given.keys()
    assert given["NVIDIA_VISIBLE_DEVICES"] == given["LC_ALL"] == "value"


async def test_a_restart_that_finds_no_free_descriptor_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, refusals = socket.socketpair, [OSError(errno.EMFILE, "Too many open files")]

    def socketpair() -> tuple[socket.socket, socket.socket]:
        if refusals:
            raise refusals.pop()
        return real()

    monkeypatch.setattr(supervisor, "BACK_OFF_SECS", (0.0,))
    async with hosted() as model:
        monkeypatch.setattr(socket, "socketpair", socketpair)
        os.kill(pid_of(model), signal.SIGKILL)
        await until(lambda: restarts_of(model) == 2)
        await until(model.ready)
        assert (await finish(await model.generate(ask(max_tokens=2)))).stop_reason == "length"


NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize(
    ("owner", "name", "refusal"),
    [
        (socket, "socketpair", NO_DESCRIPTOR),
        (os, "pipe", NO_DESCRIPTOR),
        (subprocess, "Popen", BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")),
        (threading.Thread, "start", RuntimeError("can't start new thread")),
    ],
)
async def test_a_start_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, refusal: Exception
) -> None:
    loop, watched, programs = asyncio.get_running_loop(), [], []
    add_reader, popen = loop.add_reader, subprocess.Popen
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def watch(fd: int, *call: Any) -> None:
        watched.append(fd)
        add_reader(fd, *call)

    def start(*given: Any, **options: Any) -> Any:
        programs.append(popen(*given, **options))
        return programs[-1]

    def refuse(*given: object, **options: object) -> None:
        raise refusal

    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "add_reader", watch)
        patch.setattr(subprocess, "Popen", start)
        patch.setattr(owner, name, refuse)
        said = getattr(refusal, "strerror", None) or str(refusal)
        with pytest.raises(ModelError, match=f"^an engine process cannot be started: {said}$"):
            spawned.Spawned()
    assert len(programs) == len(watched) == (name == "start")
    assert [program.returncode for program in programs] == [-signal.SIGKILL] * len(programs)
    assert not any(loop.remove_reader(fd) for fd in watched)
    assert open_files() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
async def test_a_load_that_finds_no_free_descriptor_leaves_none_open(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = os.dup, []

    def dup(fd: int) -> int:
        if made:
            raise NO_DESCRIPTOR
        made.append(real(fd))
        return made[-1]

    process = EngineProcess("n", lambda reason: None, Patience())
    load = Load(name="n", model="n", path=os.devnull, n_parallel=1, parts=2)
    before = open_files()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", dup)
            with pytest.raises(ModelError, match="cannot be passed on: Too many open files"):
                await process.load(load, [0, 0], ignored)
        assert made
        assert open_files() == before
    finally:
        await process.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file")
def test_the_system_would_kill_an_engine_of_any_user_before_the_daemon() -> None:
    script = """
import sys
from inferd import coredump
from inferd.engine.local.child import cage

def forbid():  # from here on, only root can write the file
    sys.stdout.write(open("/proc/self/oom_score_adj").read())

coredump.forbid = forbid
cage.enter("cpu")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "500\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such flag")
def test_no_debugger_of_the_user_can_attach_to_a_process_that_waits_for_a_model() -> None:
    script = """
import ctypes
from inferd.engine.local.child import host

def receive(sock):
    print(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE := 3, 0, 0, 0, 0))
    raise EOFError

host.receive = receive
host.serve()
"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run([sys.executable, "-c", script], stdin=theirs, capture_output=True, text=True)
    assert done.stdout == "0\n"
