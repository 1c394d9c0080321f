"""A running program of an engine process, seen from the daemon: its socket, its stderr and its end.

The event loop's thread starts the program, because the system kills the program when the thread that started
it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

from inferd.errors import ModelError

PROGRAM = "inferd.engine.local.child.host"
END_SECS = 1.0
"""The time limit for a program to end by itself."""
KILL_SECS = 2.0
"""The time limit for the system to end a killed program."""

_KEPT_STDERR_BYTES = 8192

# An engine gets no other variable of the daemon's environment, which contains keys such as NVIDIA_API_KEY.
_PASSED_ON = re.compile(
    r"(?!.*(KEY|TOKEN|SECRET|PASSWORD))"
    r"(PYTHON|LD_|DYLD_|GGML_|LLAMA_|CUDA_|NVIDIA_|HIP_|ROCR_|HSA_|VK_|OMP_|MALLOC_|LC_).*|LANG|TZ|INFERD_CPU_VARIANT"
)
# The lines of its stderr that may be logged: the place of a crash. Others could quote a request.
_PLACE = re.compile(r'Fatal Python error: [\w ]+|  File "[^"]*", line \d+ in [\w<>]+|\S+:\d+: GGML_ASSERT.*')

_MEANINGS = {
    "SIGKILL": "the system may be out of memory",
    "SIGXCPU": "it took too much processor time",
    "SIGBUS": "the model file may have become shorter while it was read",
}


def environment() -> dict[str, str]:
    """Returns the environment variables for a process that runs llama.cpp."""
    return {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}


class Spawned:
    """Starts the program. It waits for its ``LOAD`` message on the other end of ``sock``. ``ended`` is done
    when the program has ended. Its result is the program's exit code. Raises ModelError if the program cannot
    be started."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._stderr = bytearray()
        with contextlib.ExitStack() as undo:
            try:
                self._start(undo)
            except (OSError, RuntimeError) as error:  # the latter from a thread that cannot be started
                why = getattr(error, "strerror", None) or error
                raise ModelError(f"an engine process cannot be started: {why}") from error
            undo.pop_all()

    def _start(self, undo: contextlib.ExitStack) -> None:
        """Starts the program. ``undo`` ends it and closes what was opened for it."""
        with contextlib.ExitStack() as after:
            self.sock, theirs = socket.socketpair()
            undo.enter_context(self.sock)
            after.enter_context(theirs)
            self._errors, errors = os.pipe()
            undo.callback(os.close, self._errors)
            after.callback(os.close, errors)
            # The program inherits the mask. A signal that systemd sends to all processes could otherwise end
            # it before it ignores the signal itself.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            after.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            self._process = subprocess.Popen(  # noqa: S603 - our own program, with fixed arguments
                [sys.executable, "-m", PROGRAM],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd="/",
                env=environment(),
                start_new_session=True,  # a terminal's Ctrl-C is for the daemon
            )
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
        os.set_blocking(self._errors, False)
        self._loop.add_reader(self._errors, self._read_errors)
        undo.callback(self._loop.remove_reader, self._errors)
        threading.Thread(target=self._reap, name="inferd-reap", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def crash_places(self) -> list[str]:
        """Returns the lines of its stderr that name the place of a crash."""
        lines = self._stderr.decode("utf-8", "replace").splitlines()
        return [line for line in lines if _PLACE.fullmatch(line)]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def resume(self) -> None:
        """Lets the program run on if it was stopped (SIGSTOP)."""
        self._process.send_signal(signal.SIGCONT)

    async def end(self) -> bool:
        """Waits until the program ends by itself. Kills it after ``END_SECS``, or if the caller is cancelled.
        Then waits at most ``KILL_SECS``, and returns whether the program has ended."""
        try:
            await asyncio.wait((self.ended,), timeout=END_SECS)
        finally:
            if not self.ended.done():
                self.kill()
        await asyncio.wait((self.ended,), timeout=KILL_SECS)
        return self.ended.done()

    def _reap(self) -> None:
        """Waits for the end of the program. Runs in a separate thread, because other ways to wait are not
        portable."""
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the daemon ends, too
            self._loop.call_soon_threadsafe(self._exited, code)

    def _exited(self, code: int) -> None:
        self._read_errors()
        self._loop.remove_reader(self._errors)
        os.close(self._errors)
        self.ended.set_result(code)

    def _read_errors(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._errors, 65536)
            self._stderr += data
            del self._stderr[:-_KEPT_STDERR_BYTES]
            if not data:
                self._loop.remove_reader(self._errors)


def ending(code: int) -> str:
    """Describes the exit code of a process in words."""
    if code >= 0:
        return f"it left with exit status {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, {_MEANINGS[name]}" if name in _MEANINGS else name
    return f"signal {-code}"
