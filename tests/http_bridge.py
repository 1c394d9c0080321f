"""A real daemon with its HTTP bridge, for tests: with a controllable mock, or the real default model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from inferd.client import AdminClient
from tests import daemon_process
from tests.daemon_process import until

PATIENCE_SECS = 100.0

# The client of all tests. Without `verify=False` each client loads all certificates, which takes longer than
# most tests. It keeps no connection, so that a test leaves none behind.
web = httpx.Client(verify=False, timeout=PATIENCE_SECS, limits=httpx.Limits(max_keepalive_connections=0))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class BridgeProcess:
    """Options are given by name and reach the daemon as its variables; ``mock`` as for DaemonProcess."""

    def __init__(self, mock: Mapping[str, object] | None = None, **options: object) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="i", dir="/tmp"))
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.errors = (self.dir / "stderr").open("w+b")
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path),
            "HOME": str(self.dir),
            "XDG_RUNTIME_DIR": str(self.dir),
            "INFERD_HTTP": f"127.0.0.1:{self.port}",
            "INFERD_LOG_DIR": str(self.dir / "logs"),
        }
        if mock is not None:
            env["INFERD_BACKEND"] = "mock"
        env |= {
            name if name.isupper() else f"INFERD_{name.upper()}": str(value)
            for name, value in options.items()
        }
        program = [daemon_process.__file__, json.dumps(mock)] if mock else ["-m", "inferd", "serve"]
        self.process = subprocess.Popen(
            [sys.executable, *program],
            env=env,
            stdin=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,
        )

    def wait_ready(self) -> BridgeProcess:
        """Returns when the bridge reports that the daemon is ready."""
        until(self._answers)
        until(self._is_healthy)
        return self

    def _answers(self) -> bool:
        """Whether the port is open. This is cheaper than a request over HTTP."""
        assert self.process.poll() is None, self.stderr
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def _is_healthy(self) -> bool:
        assert self.process.poll() is None, self.stderr
        with contextlib.suppress(httpx.HTTPError):
            return web.get(f"{self.base}/health").status_code == 200
        return False

    @property
    def stderr(self) -> str:
        return (self.dir / "stderr").read_text()

    @property
    def admin(self) -> Path:
        return self.dir / "inferd" / "admin.sock"

    def status(self) -> Any:
        """The state of the daemon."""
        with AdminClient(self.admin, timeout=100) as admin:
            return admin.status()

    def wait_idle(self) -> None:
        """Returns when the daemon runs and queues nothing."""
        self.wait_running(0)

    def wait_running(self, count: int) -> None:
        """Returns when this many requests run in the daemon."""

        def reached() -> bool:
            status = self.status()
            return len(status.running) == count and not (count == 0 and status.waiting)

        until(reached)

    def release(self, events: int = 1) -> None:
        """Lets this many events pass the mock's gate."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"x" * events)
        self.process.stdin.flush()

    def events(self, msg: str) -> list[dict[str, Any]]:
        """The records of that name in the bridge's own log."""
        file = self.dir / "logs" / "http" / "inferd.ndjson"
        lines = file.read_text().splitlines() if file.exists() else []
        return [event for event in map(json.loads, lines) if event["msg"] == msg]

    def wait_event(self, msg: str, count: int = 1) -> list[dict[str, Any]]:
        until(lambda: len(self.events(msg)) >= count)
        return self.events(msg)

    def end(self) -> None:
        """Stops the daemon, which must end cleanly and stop the bridge."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(PATIENCE_SECS)
            assert code == 0, (code, self.stderr)
            for sign in ("Traceback", "was never retrieved", "was destroyed", "Exception ignored"):
                assert sign not in self.stderr, self.stderr
            for msg in ("asyncio_error", "unraisable_error", "thread_failed"):
                assert self.events(msg) == []
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.close()

    def close(self) -> None:
        """Releases the resources of an ended daemon."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.errors.close()
        shutil.rmtree(self.dir)

    def __enter__(self) -> BridgeProcess:
        return self.wait_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
