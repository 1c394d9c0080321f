"""The surfaces that a daemon serves, and their sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inferd import log
from inferd.config.settings import Settings
from inferd.serve import bind
from inferd.serve.bind import Bound

if TYPE_CHECKING:
    from inferd.engine.backend import Backend

_NEEDED = {"v1": None, "v2": None, "embed": "embed", "rerank": "rerank", "framed": None}
"""The capability of a backend that each surface needs; all backends generate text."""

_log = log.get("addresses")


def surfaces(settings: Settings, backends: Sequence[Backend]) -> list[str]:
    """The names of the configured surfaces for which at least one backend has the capability."""
    able = [backend.capabilities() for backend in backends]
    served = []
    for name, needed in _NEEDED.items():
        if name in settings.surfaces:
            if needed is None or any(getattr(capabilities, needed) for capabilities in able):
                served.append(name)
            else:
                _log.warn("surface not served, no backend is capable of it", surface=name)
    return served


def of_text(settings: Settings) -> list[str]:
    """The names of the configured surfaces that every backend supports."""
    return [name for name, needed in _NEEDED.items() if needed is None and name in settings.surfaces]


def configured(settings: Settings) -> dict[str, str]:
    """The address of each surface, served or not, and of the admin socket."""
    return {name: str(tcp or path) for name, (tcp, path) in _pairs(settings).items()}


def for_clients(settings: Settings) -> dict[str, str]:
    """The addresses in the form for clients on this machine: a path, or ``tcp://IP:port``."""
    found: dict[str, str] = {}
    for name, (tcp, path) in _pairs(settings).items():
        if tcp is None:
            found[name] = str(path)
        else:
            ip, port = bind.parse_tcp(tcp)
            loopback = "127.0.0.1" if ip.version == 4 else "::1"
            host = loopback if ip.is_unspecified else str(ip)
            found[name] = f"tcp://[{host}]:{port}" if ip.version == 6 else f"tcp://{host}:{port}"
    return found


def bind_surface(settings: Settings, name: str, passed: Mapping[str, Bound]) -> Bound:
    """The listening socket of a surface or of ``admin``: a socket from the service manager, else a new one.

    Raises AddressError.
    """
    if name in passed:
        return passed[name]
    tcp, path = _pairs(settings)[name]
    if path is None:
        has_key = settings.api_key is not None
        bound = bind.bind_tcp(str(tcp), has_key=has_key)
        if not has_key:
            _log.warn("tcp without an API key: every user of this machine can connect", address=tcp)
        return bound
    mode, group = (0o600, None) if name == "admin" else (0o660, settings.group)
    return bind.bind_unix(path, mode, group)


def check_keys(settings: Settings, passed: Mapping[str, Bound]) -> None:
    """Raises AddressError, as binding would, for a surface on a network address without a key."""
    for name, (tcp, _) in _pairs(settings).items():
        if tcp is not None and name in settings.surfaces and name not in passed:
            bind.check_key(tcp, has_key=settings.api_key is not None)


def bind_metrics(address: str, group: str | None) -> Bound:
    """The listening socket of the metrics, on a Unix socket's path or a loopback ``IP:port``.

    Raises AddressError.
    """
    if "/" in address:
        return bind.bind_unix(Path(address), 0o660, group)
    return bind.bind_tcp(address, has_key=False)


def _pairs(settings: Settings) -> dict[str, tuple[str | None, Path | None]]:
    """For each surface its TCP address, or else the path of its Unix socket."""
    return {
        "v1": (settings.tcp, settings.uds),
        "v2": (settings.v2_tcp, settings.v2_addr),
        "framed": (None, settings.framed_addr),
        "embed": (settings.embed_tcp, settings.embed_addr),
        "rerank": (settings.rerank_tcp, settings.rerank_addr),
        "admin": (None, settings.admin_addr),
    }
