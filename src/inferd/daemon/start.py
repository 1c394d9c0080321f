"""The start of a daemon, up to its first socket. Nothing here imports asyncio."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from inferd import __version__, log
from inferd.config.sources import LoadedConfig
from inferd.daemon.descriptors import raise_descriptor_limit
from inferd.daemon.places import Places
from inferd.errors import InferdError

if TYPE_CHECKING:
    from inferd.daemon.backends import Build

_log = log.get("daemon")


def run(read: Callable[[], LoadedConfig], build: Build | None = None) -> int:
    """Runs a daemon until it is stopped, and returns 0. Raises the InferdError of a failed boot.

    ``read`` reads the configuration, now and for each reload. If the config file has an error, ``run`` opens
    the admin socket before it raises the error, so that clients can see the error there. ``build`` replaces
    the function that builds backends. With ``build``, which may be slow, the inference sockets are bound only
    when all backends are ready.
    """
    # Other processes find the lock and the sockets before the daemon handles these signals. So the signals
    # are blocked until then.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        _run(read, build)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 0


def _run(read: Callable[[], LoadedConfig], build: Build | None) -> None:
    given = read()
    faulthandler.enable()
    activity = log.setup(given.settings.log_level, given.settings.log_dir)
    try:
        raise_descriptor_limit(given.settings.max_connections)
        # A thread that parses a large request yields the GIL to the event loop after 0.5 ms, not after 5.
        sys.setswitchinterval(0.0005)
        _log.info("starting", version=__version__, pid=os.getpid())
        try:
            places = Places(given, early=build is None)
        except Exception as error:
            _log.error("boot_failed", error=str(error) if isinstance(error, InferdError) else repr(error))
            raise
        with contextlib.closing(places):
            from inferd.daemon.daemon import serve

            serve(given, read, build, activity, places)
    finally:
        activity.close()
