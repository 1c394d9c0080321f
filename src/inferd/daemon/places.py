"""Holds the lock and the listening sockets of a daemon, by which clients find it.

The lock and the first sockets are taken before asyncio and the rest of the daemon are imported, so that an
early client can connect and wait. The lock is taken first, then the admin socket. If the configuration
preloads no local model, the daemon is ready soon, so the sockets of v1, v2 and the framed wire are bound at
once, too. All other sockets are bound when every backend is ready.
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
    """The lock and the sockets of one daemon process. With ``early``, the sockets of v1, v2 and the framed
    wire are bound at once, unless the configuration preloads a local model.

    Raises LockHeld and AddressError. :meth:`close` releases everything.
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
                # An error is ignored here: the boot binds again, and can report it on the admin socket.
                with contextlib.suppress(AddressError):
                    self.bind(settings, addresses.of_text(settings))
            self._held = held.pop_all()

    def bind(self, settings: Settings, names: Sequence[str]) -> dict[str, Bound]:
        """Binds those sockets of the named surfaces that are not bound yet. Returns the sockets of all named
        surfaces. Raises AddressError if a socket cannot be bound. But if only the defaults turn on the
        socket's surface, logs a warning and leaves out the surface."""
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

    def check(self, settings: Settings) -> None:
        """Raises AddressError if a socket cannot be bound. Without this check, :meth:`bind` would raise the
        error, but only after the models are fetched and loaded."""
        addresses.check(settings, self.passed)
        addresses.check_free(settings, {"admin", *self.passed, *self._sockets})

    def close(self) -> None:
        """Closes the sockets and releases the lock. A second call does nothing."""
        self._held.close()


def _lock(settings: Settings) -> Lock:
    runtime = paths.runtime_dir()
    ours = [settings.lock, settings.admin_addr, settings.uds, settings.v2_addr]
    ours += [settings.framed_addr, settings.embed_addr, settings.rerank_addr]
    if any(path is not None and path.parent == runtime for path in ours):
        ensure_private_dir(runtime)
    return Lock.acquire(settings.lock)
