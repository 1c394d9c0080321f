"""A replica of a model. The replica, a Ray actor, starts a daemon as its child process.

A call to the replica sends the bytes of one request to a surface of the daemon, and yields the bytes of the
answer. So the daemon queues, cancels and refuses the request like the request of any other client.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inferd.client.address import Addresses, Surface
from inferd.client.async_admin import AsyncAdminClient
from inferd.errors import BootFailed, ConnectionLost, DaemonUnreachable
from inferd.ray import daemon

_POLL_SECS = 0.05
_READ_BYTES = 65536
_STOP_SECS = 30.0


class Replica:
    """Runs a daemon with the configuration ``config``. The constructor waits until the daemon is ready.
    Raises BootFailed if the daemon ends before it is ready."""

    async def __init__(self, config: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._dir = Path(tempfile.mkdtemp(prefix="inferd-ray-"))
        self._process = _start(config, self._dir)
        self._addresses = Addresses({"v1": str(self._dir / "inferd" / "infer.sock")})
        self._capabilities: list[Mapping[str, Any]] = []
        await self._wait_ready()

    async def _wait_ready(self) -> None:
        """Waits until the daemon is ready. If the daemon ends first, raises BootFailed with the last line of
        the daemon's stderr."""
        while True:
            try:
                async with AsyncAdminClient(self._addresses.of("admin")) as admin:
                    await admin.wait_ready(self._take)
                return
            except (DaemonUnreachable, ConnectionLost):
                self.check_health()
            await asyncio.sleep(_POLL_SECS)

    def _take(self, frame: Mapping[str, Any]) -> None:
        if frame["status"] == "capabilities":
            self._capabilities.append(frame)

    def check_health(self) -> None:
        """Raises BootFailed if the daemon has ended. Ray then replaces the replica."""
        if self._process.poll() is not None:
            lines = (self._dir / "stderr").read_text(errors="replace").strip().splitlines()
            raise BootFailed(lines[-1] if lines else "the daemon has ended")

    async def capabilities(self) -> Sequence[Mapping[str, Any]]:
        """Returns the ``capabilities`` frames of the daemon's admin socket, which describe the model."""
        return self._capabilities

    async def call(self, surface: Surface, data: bytes) -> AsyncIterator[bytes]:
        """Sends a request to a surface of the daemon, and yields the answer in pieces. If the call is
        cancelled, the daemon cancels the request."""
        reader, writer = await asyncio.open_unix_connection(self._addresses.of(surface))
        try:
            writer.write(data)
            writer.write_eof()
            while piece := await reader.read(_READ_BYTES):
                yield piece
        finally:
            writer.transport.abort()

    def __del__(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        shutil.rmtree(self._dir, ignore_errors=True)


def _start(config: Mapping[str, Any], directory: Path) -> subprocess.Popen[bytes]:
    """Starts a daemon. Only this user has access to ``directory``, which contains the config file, the
    sockets and the stderr of the daemon."""
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    with (directory / "stderr").open("wb") as errors:
        return subprocess.Popen(  # noqa: S603 - our own program, with a path of ours
            [sys.executable, "-m", daemon.__name__, str(path)],
            env={**os.environ, "XDG_RUNTIME_DIR": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
