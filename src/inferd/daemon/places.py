"""The places by which clients find a daemon: its lock and its listening sockets.

They are taken without asyncio, before the rest of the daemon is imported, so that an early client waits in a
socket instead of finding none. First is the lock, then the admin socket. The sockets of v1, v2 and the framed
wire follow at once if no model is loaded at the start, since then the daemon is ready soon. All others are
bound when every backend is ready.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from inferd import log
from inferd.config import paths
from inferd.config.entries import LlamaCppEntry
from inferd.config.settings import Settings
from inferd.config.sources import LoadedConfig
from inferd.daemon import addresses, systemd
from inferd.errors import AddressError
from inferd.serve.bind import Bound
from inferd.store.runtime import Lock, ensure_private_dir

_log = log.get("front")


class Places:
    """The places of one run. ``early``: bind the sockets of text now, if no model is to be loaded.

    Raises LockHeld and AddressError. :meth:`close` gives everything back.
    """

    def __init__(self, given: LoadedConfig, *, early: bool) -> None:
        settings = given.settings
        self._sockets: dict[str, Bound | None] = {}
        with contextlib.ExitStack() as held:
            self._held = held
            self.lock = _lock(settings)
            held.callback(self.lock.release)
            self.passed = systemd.passed_sockets(
                addresses.configured(settings), has_key=settings.api_key is not None
            )
            for bound in self.passed.values():
                held.callback(bound.close)
            self.admin = addresses.bind_surface(settings, "admin", self.passed)
            held.callback(self.admin.close)
            loads = any(isinstance(entry, LlamaCppEntry) and entry.preload for entry in settings.backends)
            if early and given.problem is None and not loads:
                # An error is left to the boot, which meets it again and can report it on the admin socket.
                with contextlib.suppress(AddressError):
                    self.bind(settings, addresses.of_text(settings))
            self._held = held.pop_all()

    def bind(self, settings: Settings, names: Sequence[str]) -> dict[str, Bound]:
        """The sockets of the named surfaces. Raises AddressError, unless the surface is on by default."""
        for name in names:
            if name in self._sockets:
                continue
            try:
                bound = addresses.bind_surface(settings, name, self.passed)
            except AddressError as error:
                if name not in settings.implicit_surfaces:
                    raise
                _log.warn("surface not served", surface=name, reason=str(error))
                self._sockets[name] = None
            else:
                self._sockets[name] = bound
                self._held.callback(bound.close)
        found = ((name, self._sockets[name]) for name in names)
        return {name: bound for name, bound in found if bound is not None}

    def close(self) -> None:
        """Closes the sockets and releases the lock. Idempotent."""
        self._held.close()


def _lock(settings: Settings) -> Lock:
    runtime = paths.runtime_dir()
    ours = [settings.lock, settings.admin_addr, settings.uds, settings.v2_addr]
    ours += [settings.framed_addr, settings.embed_addr, settings.rerank_addr]
    if any(path is not None and path.parent == runtime for path in ours):
        ensure_private_dir(runtime)
    return Lock.acquire(settings.lock)
