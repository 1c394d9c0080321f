"""A crash of native code reports its place, reveals no prompt, and does not affect the next start."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess

SECRET = "what-the-client-wrote"


def limits_of_core_files(process: DaemonProcess) -> list[str]:
    text = Path(f"/proc/{process.process.pid}/limits").read_text()
    return next(line for line in text.splitlines() if line.startswith("Max core file size")).split()[4:6]


DUMPABLE = """
import ctypes
from inferd import coredump
before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
coredump.forbid()
print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such switch")
def test_a_program_that_collects_core_dumps_gets_none() -> None:
    done = subprocess.run([sys.executable, "-c", DUMPABLE], capture_output=True, text=True, check=True)
    assert done.stdout == "1 0\n"


@pytest.mark.parametrize("allowed", [False, True])
def test_a_core_dump_is_written_only_on_request(allowed: bool, daemon: Callable[..., DaemonProcess]) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        process = daemon(core_dumps=allowed).wait_ready()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    limit = "unlimited" if before[1] == resource.RLIM_INFINITY else str(before[1])
    assert limits_of_core_files(process) == ([limit] * 2 if allowed else ["0", "0"])


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGILL])
def test_a_crash_says_where_and_the_next_start_is_clean(
    number: signal.Signals, daemon: Callable[..., DaemonProcess]
) -> None:
    process = daemon(mock={"tape": ["a"], "gate": True}).wait_ready()
    with process.connect() as client:
        client.send({"id": "q", "messages": [{"role": "user", "content": SECRET}]})
        client.wait_until_read()
        process.wait_event("connection_accepted")
        process.signal(number)
        assert process.wait() == -number
        assert client.rest() == b""
    said = process.stderr
    assert "Fatal Python error" in said
    assert "most recent call first" in said
    assert SECRET not in said + process.log_file.read_text()
    assert process.uds.is_socket()  # it had no time to clean up
    again = daemon(XDG_RUNTIME_DIR=process.dir, mock={"tape": ["a"]})
    again.uds, again.admin = process.uds, process.admin
    with again.wait_ready().connect() as client:
        client.send({"id": "q", "messages": [{"role": "user", "content": "hi"}]})
        assert [frame["type"] for frame in client.frames()] == ["token", "done"]
