"""A crash of native code says where, tells nothing of what was asked, and leaves a clean next start."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.daemon_process import DaemonProcess

SECRET = "what-the-client-wrote"


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
