"""A user at a shell: runs ``inferd`` as processes with a private home directory, and in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.daemon_process import is_gone, until

PATIENCE_SECS = 100.0
INFERD = (sys.executable, "-W", "error", "-m", "inferd")


class Shell:
    """Runs commands as a user whose home and runtime directory is ``home``."""

    def __init__(self, home: Path, **env: str) -> None:
        self.home = home
        self.runtime = home / "inferd"
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            **env,
        }

    def __call__(self, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Runs ``inferd ARGUMENTS`` to its end."""
        return subprocess.run(
            [*INFERD, *arguments],
            env={**self.env, **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECS,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts ``inferd ARGUMENTS`` with pipes for its output."""
        return subprocess.Popen(
            [*INFERD, *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def events(self, msg: str) -> list[dict[str, Any]]:
        """The events of that name in the activity log of background daemons."""
        path = self.home / ".inferd" / "logs" / "inferd.ndjson"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["msg"] == msg]

    def pid(self) -> int:
        return int((self.runtime / "inferd.lock").read_text())

    def stop(self) -> None:
        """Ends the background daemon, if any; faster than ``inferd stop``."""
        if self.is_running():
            pid = self.pid()
            os.kill(pid, signal.SIGTERM)
            # The daemon may still write its log after it has released the lock.
            until(lambda: is_gone(pid))

    def is_running(self) -> bool:
        lock = self.runtime / "inferd.lock"
        return lock.exists() and not _lockable(lock)


def _lockable(lock: Path) -> bool:
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Terminal:
    """A command in its own terminal."""

    def __init__(self, shell: Shell, *arguments: str) -> None:
        self._fd, inner = os.openpty()
        self.screen = ""
        # The shell leads a session, so that the terminal becomes its controlling one and Ctrl-C a signal.
        opening = 'tty=$1; shift; exec "$@" <"$tty" >"$tty" 2>&1'
        self.process = subprocess.Popen(
            ["sh", "-c", opening, "sh", os.ttyname(inner), *INFERD, *arguments],
            env={**shell.env, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
        )
        until(lambda: bool(select.select([self._fd], [], [], 0.01)[0]))
        os.close(inner)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, text: str) -> str:
        """Reads up to ``text``, which must appear; returns the output before it."""
        deadline = time.monotonic() + PATIENCE_SECS
        while text not in self.screen:
            assert time.monotonic() < deadline, self.screen
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    self.screen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self._fd, 65536).decode())
                except OSError:  # the terminal's other end is closed
                    assert text in self.screen, self.screen
        before, _, self.screen = self.screen.partition(text)
        return before

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(PATIENCE_SECS)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
