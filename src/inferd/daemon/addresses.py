"""The surfaces that a daemon serves (v1, v2, framed, embed, rerank and admin), and their sockets."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inferd import log
from inferd.config.settings import Settings
from inferd.serve import bind
from inferd.serve.bind import Bound

if TYPE_CHECKING:
    from inferd.engine.backend import Backend

_NEEDED = {"v1": None, "v2": None, "embed": "embed", "rerank": "rerank", "framed": None}
"""Each surface, and the capability that the surface needs of a backend. ``None``: the surface serves text,
which needs no special capability."""

_log = log.get("addresses")


def surfaces(settings: Settings, backends: Sequence[Backend]) -> list[str]:
    """Returns the names of the configured surfaces that at least one backend can serve."""
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
    """Returns the names of the configured surfaces that serve text."""
    return [name for name, needed in _NEEDED.items() if needed is None and name in settings.surfaces]


def configured(settings: Settings) -> dict[str, str]:
    """Returns the configured address of every surface, even of a surface that the daemon does not serve."""
    return {name: str(tcp or path) for name, (tcp, path) in _pairs(settings).items()}


def for_clients(settings: Settings) -> dict[str, str]:
    """Returns the address of each surface in the form that clients on this machine use: a path, or
    ``tcp://IP:port``."""
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
    """Returns the listening socket of the surface ``name``: the socket that the service manager has passed
    for it, or else a new socket.

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


def check(settings: Settings, passed: Mapping[str, Bound]) -> None:
    """Raises AddressError if a surface has a TCP address beyond loopback and no API key is set, or if the
    group of the sockets does not exist. Without this check, :func:`bind_surface` would raise the error, but
    later. Skips surfaces whose socket the service manager has ``passed``."""
    if settings.group is not None:
        bind.group_id(settings.group)
    for name, (tcp, _) in _pairs(settings).items():
        if tcp is not None and name in settings.surfaces and name not in passed:
            bind.check_key(tcp, has_key=settings.api_key is not None)


def check_free(settings: Settings, bound: Container[str]) -> None:
    """Raises AddressError if an address that the configuration names is taken, or cannot be a socket. Skips
    the surfaces that are ``bound`` already."""
    for name, (tcp, path) in _pairs(settings).items():
        if name not in settings.surfaces or name in settings.implicit_surfaces or name in bound:
            continue
        if tcp is not None:
            bind.bind_tcp(tcp, has_key=settings.api_key is not None).close()
        elif path is not None:
            bind.check_path(path)


def bind_metrics(address: str, group: str | None) -> Bound:
    """Binds the socket for the metrics. ``address`` is the path of a Unix socket or a loopback ``IP:port``.

    Raises AddressError.
    """
    if "/" in address:
        return bind.bind_unix(Path(address), 0o660, group)
    return bind.bind_tcp(address, has_key=False)


def _pairs(settings: Settings) -> dict[str, tuple[str | None, Path | None]]:
    """Returns for each surface its TCP address and the path of its Unix socket. One of them is ``None``."""
    return {
        "v1": (settings.tcp, settings.uds),
        "v2": (settings.v2_tcp, settings.v2_addr),
        "framed": (None, settings.framed_addr),
        "embed": (settings.embed_tcp, settings.embed_addr),
        "rerank": (settings.rerank_tcp, settings.rerank_addr),
        "admin": (None, settings.admin_addr),
    }
