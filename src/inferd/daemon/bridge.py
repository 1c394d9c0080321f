"""Runs the HTTP bridge as a child process: binds its socket, and starts, restarts and ends the child.

The daemon holds the listening socket, which stays open if the child dies. So clients wait in the socket's
backlog while a new child starts. The child reads its setup as one line from standard input. The end of
standard input means that the daemon is gone, and then the child exits, too. The child's command is this
Python interpreter with fixed arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import orjson

from inferd import __version__, log
from inferd.config.settings import Settings
from inferd.daemon import addresses, port_owner
from inferd.errors import AddressError, ConfigError
from inferd.serve import bind

COMMAND = (sys.executable, "-m", "inferd.http")
CHECK = (sys.executable, "-m", "inferd.http.files")
PAUSES_SECS = (0.0, 1.0, 5.0, 30.0)
"""The delays before the first restart, the second, and so on. After a child has run for ``STABLE_SECS``, the
next delay is the first one again."""

STABLE_SECS = 10.0
STOP_SECS = 20.0
"""How long a child may take to finish its requests and exit."""

NEEDED = ("starlette", "uvicorn", "httptools")

_log = log.get("bridge")


def check(settings: Settings) -> None:
    """Checks the packages, the files, the v2 surface and the address that the bridge needs. Raises
    ConfigError or AddressError. Otherwise the bridge would end with the error at each start."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--http needs packages that are not installed; run: pip install {' '.join(missing)}"
        )
    files = (settings.http_key_file, settings.http_cert, settings.http_key)
    for file in files:
        if file is not None and not file.is_file():
            raise ConfigError(f"{file}, which the HTTP bridge needs, is not there")
    if any(files):
        _check_contents([_path(file) or "" for file in files])
    if "v2" not in settings.surfaces:
        raise ConfigError("the HTTP bridge needs v2; leave out --no-v2 or --http")
    bind_address(settings).close()  # the daemon binds the address again when it can serve


def _check_contents(files: Sequence[str]) -> None:
    """Raises ConfigError if the key file or the certificate cannot be used."""
    checked = subprocess.run(  # noqa: S603 - our own interpreter with fixed arguments
        [*CHECK, *files],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,  # without a terminal, in which OpenSSL would ask for a pass phrase
        check=False,
    )
    if checked.returncode:
        reason = checked.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"HTTP: {reason or 'the check of its files failed'}")


def has_keys(settings: Settings) -> bool:
    """Whether HTTP clients must send an API key."""
    return settings.http_key_file is not None or settings.api_key is not None


def setup_of(settings: Settings, fd: int, token: str) -> Mapping[str, object]:
    """Returns the setup (:class:`inferd.http.server.Setup`) of a bridge on the listening socket ``fd``."""
    key = None if settings.api_key is None else settings.api_key.reveal()
    return {
        "fd": fd,
        "version": __version__,
        "addresses": addresses.for_clients(settings),
        "token": token,
        "api_key": key,
        "key_file": _path(settings.http_key_file),
        "single_key": None if settings.http_key_file is not None else key,
        "aliases": dict(settings.http_aliases),
        "ollama_version": settings.http_ollama_version,
        "hosts": list(settings.http_hosts),
        "origins": list(settings.http_origins),
        "cert": _path(settings.http_cert),
        "cert_key": _path(settings.http_key),
        "max_connections": settings.max_connections,
        "log_level": settings.log_level,
        "log_dir": str(settings.log_dir.absolute() / "http"),
    }


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def bind_address(settings: Settings) -> bind.Bound:
    """Binds the listening socket. Raises AddressError if the address cannot be bound. If another process
    listens on the address and can be found, the message names this process."""
    address = str(settings.http)
    try:
        return bind.bind_tcp(address, has_key=has_keys(settings))
    except AddressError as error:
        owner = port_owner.of(address)
        hint = "" if owner is None else f" by {owner}"
        raise AddressError(f"HTTP: {error}{hint}; choose another address with --http IP:PORT") from None


class HttpBridge:
    """Supervises the child process. The child authenticates to the daemon with ``token``."""

    def __init__(self, settings: Settings) -> None:
        self.token = secrets.token_hex(32)
        self._bound = bind_address(settings)
        self._setup = orjson.dumps(setup_of(settings, self._bound.sock.fileno(), self.token)) + b"\n"
        self._child: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._told_to_stop = asyncio.Event()

    def start(self) -> None:
        """Starts the child, and restarts it whenever it exits."""
        self._task = asyncio.get_running_loop().create_task(self._supervise())
        _log.info("http_listening", address=self._bound.address)

    def stop(self) -> None:
        """Tells the child to accept no new connection, and to exit after its running requests. A second call
        does nothing."""
        if self._told_to_stop.is_set():
            return  # a second signal would kill the child at once
        self._told_to_stop.set()
        self._bound.close()
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.terminate()

    async def close(self) -> None:
        """Stops the child and waits until it has exited. Kills the child if it still runs after
        ``STOP_SECS``."""
        self.stop()
        if self._task is None:
            return
        await asyncio.wait((self._task,), timeout=STOP_SECS)
        if self._child is not None and self._child.returncode is None:
            _log.warn("http_bridge_killed", pid=self._child.pid)
            self._child.kill()
        if not self._task.done():
            if self._child is None:
                self._task.cancel()
            await asyncio.wait((self._task,))

    async def _supervise(self) -> None:
        failures = 0
        while not self._told_to_stop.is_set():
            started = time.monotonic()
            status = await self._run()
            if self._told_to_stop.is_set():
                return
            if time.monotonic() - started >= STABLE_SECS:
                failures = 0
            pause = PAUSES_SECS[min(failures, len(PAUSES_SECS) - 1)]
            failures += 1
            _log.error("http_bridge_ended", status=status, restart_secs=pause)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told_to_stop.wait(), pause)

    async def _run(self) -> int:
        """Runs one child until it exits, and returns its exit status."""
        fd = self._bound.sock.fileno()
        self._child = child = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=asyncio.subprocess.PIPE, pass_fds=(fd,), cwd="/", start_new_session=True
        )
        if self._told_to_stop.is_set():
            child.terminate()
        _log.info("http_bridge_started", pid=child.pid)
        pipe = cast("asyncio.StreamWriter", child.stdin)
        pipe.write(self._setup)
        try:
            return await child.wait()
        finally:
            pipe.close()
