"""A daemon with an unread stderr keeps its activity log complete, and can still exit."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from tests.daemon_process import Wire, until
from tests.shell import Shell

REQUESTS = 3000  # a pipe holds the text of a few hundred


def connected(sock: Path) -> Wire:
    """A connection to a socket that was bound a moment ago."""
    wires: list[Wire] = []

    def connects() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            wires.append(Wire(sock))
        return bool(wires)

    until(connects)
    return wires[0]


def test_every_request_is_in_the_file(short_dir: Path) -> None:
    inferd = Shell(short_dir, INFERD_BACKEND="mock")
    daemon = inferd.start("serve")
    try:
        sock = inferd.runtime / "infer.sock"
        until(sock.exists)
        request = {"id": "q", "stream": False, "messages": [{"role": "user", "content": "hi"}]}
        with connected(sock) as client:
            for _ in range(REQUESTS):
                client.send(request)
                assert client.frame()["type"] == "done"
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(100) == 0
    finally:
        daemon.kill()
        daemon.communicate()
    assert len(inferd.events("request_done")) == REQUESTS
