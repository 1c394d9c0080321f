"""Shared fixtures: short socket paths, both event loops, daemons, and the check for leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest
import uvloop

from tests import left_behind, remote_server
from tests.daemon_process import DaemonProcess
from tests.remote_server import RemoteServer

# A thread may need a moment to stop.
ENDING_SECS = 100.0

# A background job of a shell ignores Ctrl-C, and processes inherit that: the tests could not interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# numpy's threads spin while they wait, which is very slow on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: run on uvloop and on asyncio's own event loop")
    # On a busy machine an example may take any time.
    hypothesis.settings.register_profile("suite", deadline=None)
    hypothesis.settings.load_profile("suite")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Tests of named files run in pytest's own process, where a debugger and ``-s`` work.

    All others have one worker more than cores, since a worker often waits for the processes that it started.
    """
    if all(Path(arg.partition("::")[0]).is_file() for arg in config.args):
        return 0
    return (os.cpu_count() or 1) + 1


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    if item.get_closest_marker("both_loops") is None:
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A private directory whose path leaves room for a socket's name."""
    path = Path(tempfile.mkdtemp(prefix="i", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session", autouse=True)
def _what_libuv_keeps() -> None:
    """The first event loop of a process permanently opens the signal pipe of all loops."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def no_leaks(_what_libuv_keeps: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaks a descriptor, a thread, or an object of a request.

    All objects of before the test are frozen, so that the check looks at the few of the test itself.
    """
    gc.collect()
    gc.freeze()
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    if hasattr(request.node, "callspec"):
        left_behind.forget_tracebacks(request.node.callspec.params)
    leaked = {thread for thread in threading.enumerate() if thread not in threads and not _is_pooled(thread)}
    for thread in leaked:
        thread.join(ENDING_SECS)
    leaked = {thread for thread in leaked if thread.is_alive()}
    assert not leaked, f"threads left behind: {leaked}"
    if _descriptors() - descriptors or left_behind.requests():
        gc.collect()
        left = _descriptors() - descriptors
        assert not left, f"descriptors left behind: {left}"
        kept = left_behind.requests()
        assert not kept, f"left behind: {kept}, held by {[gc.get_referrers(each) for each in kept]}"


def _is_pooled(thread: threading.Thread) -> bool:
    """Threads of the event loop's pool end with the loop's fixture, which may be torn down later."""
    return thread.name.startswith("asyncio_")


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - twice for each test; a Path takes four times as long
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))  # noqa: PTH115
    return found


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Starts real daemons, ``daemon(queue_depth=0, mock={…})``; each must end cleanly with the test."""
    started: list[DaemonProcess] = []

    def start(
        mock: Mapping[str, object] | None = None,
        passed: Mapping[str, socket.socket] | None = None,
        **options: object,
    ) -> DaemonProcess:
        process = DaemonProcess(short_dir / str(len(started)), options, mock or {}, passed)
        started.append(process)
        return process

    yield start
    problems = [problem for process in started for problem in process.end()]
    assert not problems, problems


@pytest.fixture
def remote() -> Iterator[Callable[..., RemoteServer]]:
    """Starts scripted servers for a remote backend to talk to."""
    started: list[RemoteServer] = []

    def start(script: remote_server.Script, tls: ssl.SSLContext | None = None) -> RemoteServer:
        started.append(RemoteServer(script, tls))
        return started[-1]

    yield start
    for each in started:
        each.stop()
