"""The process of the HTTP bridge. The process runs uvicorn on a socket that is already bound. inferd's own
classes replace uvicorn's handling of connections and signals.

The daemon runs ``python -m inferd.http``, and writes a :class:`Setup` as one line of JSON to the standard
input of this process. The daemon keeps the pipe open. When the input ends, the daemon has ended, so the
bridge stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import uvicorn
import uvloop

from inferd import __version__, log
from inferd.errors import ConfigError
from inferd.http import endpoints, files
from inferd.http.app import Bridge, Options
from inferd.http.keys import Keys
from inferd.http.protocol import Protocol
from inferd.log import library

KEEP_ALIVE_SECS = 120
"""Longer than the SDKs keep an idle connection, so that an SDK never reuses a connection that has just
been closed."""

LAST_WORDS_SECS = 15
TICK_SECS = 1.0
SWITCH_SECS = 0.0005


class Setup(msgspec.Struct, kw_only=True):
    """The settings of an HTTP bridge process. ``fd`` is the listening socket. ``addresses`` maps the names of
    the daemon's surfaces, such as ``v2`` or ``admin``, to their socket addresses."""

    fd: int
    version: str
    addresses: dict[str, str]
    token: str = ""
    api_key: str | None = None
    key_file: str | None = None
    single_key: str | None = None
    aliases: dict[str, str] = {}
    ollama_version: str
    hosts: list[str] = []
    origins: list[str] = []
    cert: str | None = None
    cert_key: str | None = None
    max_connections: int = 1024
    log_level: str = "info"
    log_dir: str | None = None


def setup(values: Mapping[str, object]) -> Setup:
    """Converts ``values``, which have the types of JSON, to a :class:`Setup`."""
    return msgspec.convert(values, Setup)


def main() -> int:
    """Runs the HTTP bridge of a daemon until a signal arrives or the daemon ends. Returns 0."""
    given = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setup)
    if given.version != __version__:
        raise ConfigError(
            f"the daemon is version {given.version} and its HTTP bridge is {__version__}; restart the daemon"
        )
    return run(given, supervised=True)


def run(setup: Setup, *, supervised: bool = False) -> int:
    """Serves until a signal arrives or, if ``supervised``, standard input ends. Raises ConfigError."""
    key_file, cert, cert_key = (
        None if path is None else Path(path) for path in (setup.key_file, setup.cert, setup.cert_key)
    )
    keys = Keys(key_file, setup.single_key)
    files.check_certificate(cert, cert_key)
    bridge = Bridge(
        Options(
            addresses=setup.addresses,
            keys=keys,
            aliases=setup.aliases,
            ollama_version=setup.ollama_version,
            hosts=setup.hosts,
            origins=setup.origins,
            token=setup.token,
            api_key=setup.api_key,
        )
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    activity = log.setup(setup.log_level, Path(setup.log_dir) if setup.log_dir else None)
    gc.freeze()  # the garbage collector need not scan objects that stay until the end
    # The log's threads format records while requests run. By default a thread may hold the GIL for 5 ms.
    sys.setswitchinterval(SWITCH_SECS)
    try:
        uvloop.run(_serve(setup, bridge, supervised))
    finally:
        library.release()
        activity.close()
    return 0


async def _serve(setup: Setup, bridge: Bridge, supervised: bool) -> None:
    library.capture(asyncio.get_running_loop())
    protocol = type("BoundedProtocol", (Protocol,), {"max_connections": setup.max_connections})
    config = uvicorn.Config(
        bridge.app(endpoints.ROUTES, endpoints.scope_of),
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=KEEP_ALIVE_SECS,
        timeout_graceful_shutdown=LAST_WORDS_SECS,
        ssl_certfile=setup.cert,
        ssl_keyfile=setup.cert_key,
    )
    listener = socket.socket(fileno=setup.fd)
    server = _Server(config)
    if supervised:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), _end_of_daemon, loop, server)
    with listener:
        await server.serve(sockets=[listener])


def _end_of_daemon(loop: asyncio.AbstractEventLoop, server: _Server) -> None:
    loop.remove_reader(sys.stdin.fileno())
    server.end()


class _Server(uvicorn.Server):
    """uvicorn's server with two changes: it exits normally after a signal, and an idle server wakes only once
    a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
        self.end()

    def end(self) -> None:
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        # uvicorn's own loop checks should_exit ten times a second. The tick updates the Date header.
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), TICK_SECS)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
