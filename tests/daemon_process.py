"""A real daemon process on real sockets, and a plain socket client to talk to it.

Options are given by name, and the daemon gets them as environment variables. If a test gives settings for the
``mock``, this file is the main program of the process. It runs the same daemon, but with a mock backend that
has prepared events, a fault, or a gate. The gate lets one event pass for each byte that
:meth:`DaemonProcess.release` writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inferd import log
from inferd.config import sources
from inferd.config.entries import BackendEntry, MockEntry
from inferd.config.settings import Settings
from inferd.daemon import start
from inferd.daemon.build import build_backend
from inferd.engine.backend import Backend, Capabilities
from inferd.engine.events import Thinking, ToolUse
from inferd.engine.mock import Mock
from inferd.engine.requests import ToolCall
from inferd.errors import BootCancelled, InferdError, ModelError
from inferd.progress import Progress
from inferd.serve import health

PATIENCE_SECS = 100.0


class Wire:
    """A connected socket that reads whole lines; every wait fails after PATIENCE_SECS."""

    def __init__(self, address: Path | tuple[str, int]) -> None:
        tcp = isinstance(address, tuple)
        self.sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_SECS)
        try:
            self.sock.connect(address if tcp else str(address))
        except BaseException:
            self.sock.close()
            raise
        self._received = b""

    def send(self, *data: bytes | dict[str, Any]) -> None:
        for item in data:
            self.sock.sendall(item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n")

    def wait_until_read(self) -> None:
        """Returns when the daemon has read all sent bytes."""
        until(lambda: fcntl.ioctl(self.sock, termios.TIOCOUTQ, b"\0\0\0\0") == b"\0\0\0\0")

    def line(self) -> bytes:
        """The next line with its newline; at the end of the stream, the remaining bytes."""
        while b"\n" not in self._received:
            chunk = self.sock.recv(65536)
            if not chunk:
                break
            self._received += chunk
        line, newline, self._received = self._received.partition(b"\n")
        return line + newline

    def frame(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self.line())
        return frame

    def frames(self) -> Iterator[dict[str, Any]]:
        """The frames of one request, the terminal one last."""
        while True:
            frame = self.frame()
            yield frame
            if frame["type"] in ("done", "error"):
                return

    def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        while chunk := self.sock.recv(65536):
            self._received += chunk
        rest, self._received = self._received, b""
        return rest

    def finish_sending(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# As a service manager does: the sockets are descriptors 3 and up when the daemon starts.
_PASS_ON = """
import fcntl, json, os, sys
names, fds, *program = sys.argv[1:]
fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in json.loads(fds)]
for number, fd in enumerate(fds, start=3):
    os.dup2(fd, number)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-W", "error", *program])
"""


class DaemonProcess:
    """``mock`` knobs: ``tape`` and ``repeat``, ``drop_after``, ``gate``, and ``hold``, which keeps the boot
    at ``build`` or ``ready`` until :meth:`release`, or lets it ``fail`` then. Held at ``ready``, the mock
    logs ``not_ready`` whenever the daemon asks. A token of the tape may be an
    object, ``{"thinking"}`` or ``{"id", "name", "arguments"}``; ``able`` are the capabilities. ``passed`` are
    listening sockets by their names, which the daemon gets as from a service manager."""

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, object],
        mock: Mapping[str, object],
        passed: Mapping[str, socket.socket] | None = None,
    ) -> None:
        directory.mkdir()
        self.dir = directory
        self.uds = directory / "inferd" / "infer.sock"
        self.admin = directory / "inferd" / "admin.sock"
        self.log_file = directory / "logs" / "inferd.ndjson"
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(directory),
            "INFERD_BACKEND": "mock",
            "INFERD_LOG_DIR": str(self.log_file.parent),
            "INFERD_SPARE_ENGINE": "0",  # the children and resources of the daemon are counted
        }
        if os.getuid() != 0:
            env["INFERD_CORE_DUMPS"] = "1"  # otherwise only root can see the daemon's open files
        if "INFERD_IMPL" in os.environ:
            env["INFERD_IMPL"] = os.environ["INFERD_IMPL"]
        # The choice of a GPU (GGML_VK_VISIBLE_DEVICES) also applies to the daemon's engines.
        env |= {
            name: os.environ[name]
            for name in os.environ
            if name == "INFERD_IMPL" or "VISIBLE_DEVICES" in name
        }
        for name, value in options.items():
            env[name if name.isupper() else f"INFERD_{name.upper()}"] = str(value)
        program = [__file__, json.dumps(mock)] if mock else ["-m", "inferd", "serve"]
        fds = [sock.fileno() for sock in (passed or {}).values()]
        if passed:
            program = ["-c", _PASS_ON, ":".join(passed), json.dumps(fds), *program]
        self._errors = (directory / "stderr").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *program],
            env=env,
            stdin=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            pass_fds=fds,
        )
        self._at_ready: set[str] | None = None

    # Watching.

    def subscribe(self) -> Wire:
        """A connection to the admin socket, as soon as there is one."""
        deadline = time.monotonic() + PATIENCE_SECS
        while True:
            try:
                return Wire(self.admin)
            except (FileNotFoundError, ConnectionRefusedError):
                assert self.process.poll() is None, f"the daemon ended: {self.stderr}"
                assert time.monotonic() < deadline, "no admin socket"
                time.sleep(0.005)

    def wait_for(self, status: str) -> list[dict[str, Any]]:
        """The status frames up to one with ``status``."""
        with self.subscribe() as admin:
            seen = [admin.frame()]
            while seen[-1]["status"] != status:
                seen.append(admin.frame())
        return seen

    def wait_ready(self) -> DaemonProcess:
        self.wait_for("ready")
        self.note_resources()
        return self

    def note_resources(self) -> None:
        """Makes the present resources the baseline of the idle daemon, after a new engine has started."""
        self._at_ready = self._resources()

    def connect(self, surface: str = "v1") -> Wire:
        name = "infer.sock" if surface == "v1" else f"infer.{surface}.sock"
        return Wire(self.uds.with_name(name))

    @property
    def stderr(self) -> str:
        return (self.dir / "stderr").read_text()

    def events(self, msg: str | None = None) -> list[dict[str, Any]]:
        """The activity log written so far; complete once the process has ended."""
        lines = self.log_file.read_text().splitlines() if self.log_file.exists() else []
        return [event for event in map(json.loads, lines) if msg is None or event["msg"] == msg]

    def wait_event(self, msg: str, count: int = 1) -> list[dict[str, Any]]:
        until(lambda: len(self.events(msg)) >= count)
        return self.events(msg)

    # Acting.

    def release(self, events: int = 1) -> None:
        """Lets this many events of the mock pass the gate."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"x" * events)
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        assert number != signal.SIGKILL, "kill() also waits for the end"
        self.process.send_signal(number)

    def kill(self) -> None:
        """Returns when the daemon has ended: its sockets close earlier, and a fixture could find it alive."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(PATIENCE_SECS)

    def end(self) -> list[str]:
        """Stops the daemon if the test has not; returns its faults, leaks included."""
        problems = []
        if self.process.poll() is None:
            if self._at_ready is not None:
                settled = until(lambda: not self._left_over(), fail=False)
                problems += [] if settled else [f"left open in the daemon: {self._left_over()}"]
            self.signal(signal.SIGTERM)
            try:
                code = self.wait()
                problems += [] if code == 0 else [f"exit status {code} after SIGTERM"]
            except subprocess.TimeoutExpired:
                self.kill()
                problems.append("did not stop on SIGTERM")
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._errors.close()
        for sign in ("Traceback", "was never retrieved", "was destroyed", "Exception ignored", "Warning"):
            if sign in self.stderr:
                problems.append(self.stderr)
                break
        problems += [str(event) for event in self.events() if event["component"] == "library"]
        return problems

    def _left_over(self) -> set[str]:
        return self._resources() - (self._at_ready or set())

    def _resources(self) -> set[str]:
        """The daemon's threads and the targets of its descriptors."""
        proc = Path(f"/proc/{self.process.pid}")
        found = {f"thread {task.name}" for task in (proc / "task").iterdir()}
        for fd in (proc / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(str(fd.readlink()))
        return found - {str(self.log_file)}  # opened and opened again as it is written


def until(condition: Callable[[], bool], fail: bool = True) -> bool:
    """Polls until the condition is true, at once and then less and less often: the polls take CPU time."""
    deadline = time.monotonic() + PATIENCE_SECS
    pause = 0.0005
    while not condition():
        if time.monotonic() >= deadline:
            assert not fail, "waited in vain"
            return False
        time.sleep(pause)
        pause = min(1.2 * pause, 0.02)
    return True


def is_gone(pid: int) -> bool:
    """Whether the process does not exist, not even as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# From here on: the main program of a daemon with a controllable mock.


class _Gate:
    """Lets one event of any backend pass for each byte on stdin."""

    def __init__(self) -> None:
        self._passes = asyncio.Semaphore(0)
        asyncio.get_running_loop().add_reader(0, self._read)

    def _read(self) -> None:
        data = os.read(0, 4096)
        for _ in data:
            self._passes.release()
        if not data:
            asyncio.get_running_loop().remove_reader(0)

    async def __call__(self) -> None:
        await self._passes.acquire()


@functools.cache
def _the_gate() -> _Gate:
    return _Gate()


class _GatedMock(Mock):
    def __init__(self, name: str, *, gate: bool, hold: str, **knobs: Any) -> None:
        super().__init__(name, **knobs)
        self._gated, self._held = gate, hold == "ready"
        self.is_ready = not self._held

    async def start(self) -> None:
        if self._gated:
            self.pace = _the_gate()
        if self._held:
            asyncio.get_running_loop().add_reader(0, self._become_ready)

    def ready(self) -> bool:
        if not self.is_ready:
            log.get("mock").info("not_ready")
        return self.is_ready

    def _become_ready(self) -> None:
        os.read(0, 1)
        asyncio.get_running_loop().remove_reader(0)
        self.is_ready = True


def _token(token: str | dict[str, str]) -> str | Thinking | ToolUse:
    if isinstance(token, str):
        return token
    return Thinking(token["thinking"]) if "thinking" in token else ToolUse(ToolCall(**token))


def _serve(knobs: dict[str, Any]) -> int:
    gate, hold = knobs.pop("gate", False), knobs.pop("hold", "")
    if "able" in knobs:
        knobs["capabilities"] = Capabilities(**knobs.pop("able"))
    if "tape" in knobs:
        knobs["tape"] = [_token(token) for token in knobs["tape"]] * knobs.pop("repeat", 1)

    health.LOOK_SECS = 0.05

    def build(
        settings: Settings, entry: BackendEntry, progress: Progress, cancelled: threading.Event
    ) -> Backend:
        if not isinstance(entry, MockEntry):
            return build_backend(settings, entry, progress, cancelled)
        progress("checking_local", {"path": "(mock)"})
        while hold in ("build", "fail") and not select.select([0], [], [], 0.01)[0]:
            if cancelled.is_set():
                raise BootCancelled("cancelled")
        if hold == "fail":
            raise ModelError("the model is of stone; choose another")
        if hold == "build":
            os.read(0, 1)
        return _GatedMock(entry.name, gate=gate, hold=hold, **knobs)

    try:
        return start.run(lambda: sources.read({}), build)
    except InferdError as error:
        sys.stderr.write(f"inferd: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(_serve(json.loads(sys.argv[1])))
