"""Finds the addresses of a daemon's surfaces, and creates the exceptions for failed connections.

A daemon has an address for each surface (v1, v2, embed, rerank, admin): the path of a Unix socket or
``tcp://IP:port``. A client may be given the v1 address alone. If this address is a Unix socket with the
default file name of the v1, v2 or framed socket, the client expects the sockets of the other surfaces in the
same directory. Otherwise, the client sends v2 requests to the v1 address, and must be given the address of
each other surface that it uses. A client without any address uses the default addresses. A client with a v1
address never uses a default address, since the default address may belong to another daemon.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inferd.config import paths, surfaces
from inferd.errors import DaemonUnreachable, NotPermitted, SurfaceNotServed, UsageError

Surface = Literal["v1", "v2", "embed", "rerank"]
Address = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed address. ``tcp`` is a host and a port, or ``None`` for a Unix socket."""

    text: str
    surface: paths.Surface
    tcp: tuple[str, int] | None

    def unreachable(self, error: OSError) -> DaemonUnreachable:
        """Returns the error to raise for a failed connection."""
        if isinstance(error, PermissionError) and self.surface == "admin":
            return NotPermitted(
                f"the status socket {self.text} is only for the user that runs the daemon; requests are"
                " possible for members of its group all the same"
            )
        if isinstance(error, PermissionError):
            return NotPermitted(
                f"the socket {self.text} may not be opened by this user; join its group or ask the user"
                " that runs inferd"
            )
        if self.tcp is None and not Path(self.text).exists():
            if self.surface == "admin" and self._runs_without():
                return SurfaceNotServed(
                    f"a daemon seems to run, but its admin socket is not at {self.text}; set"
                    " INFERD_ADMIN_ADDR, or ask the user that runs inferd, who alone can read the state"
                )
            if self.surface in ("v1", "admin"):
                return DaemonUnreachable(
                    f"no daemon is running: there is no socket at {self.text}; start one with `inferd serve`"
                )
            kind = SurfaceNotServed if self._runs_without() else DaemonUnreachable
            return kind(
                f"no daemon is running that serves {self.surface}: there is no socket at {self.text};"
                f" start one with `inferd serve{_SERVING.get(self.surface, '')}`"
            )
        reason = error.strerror or str(error)
        return DaemonUnreachable(
            f"no daemon answers at {self.text} ({reason}); start one with `inferd serve`"
        )

    def _runs_without(self) -> bool:
        """Whether a daemon seems to run without this surface. This is assumed if the directory of the missing
        socket has a v1 socket."""
        return (Path(self.text).parent / paths.socket_path("v1").name).exists()


_GENERATION: tuple[paths.Surface, ...] = ("v1", "v2", "framed")
_SERVING = {"embed": " --embed", "rerank": " --rerank"}


def endpoint(address: Address, surface: paths.Surface) -> Endpoint:
    """Parses an address. Raises UsageError for an invalid address."""
    text = os.fspath(address)
    scheme, separator, place = text.rpartition("://")
    if not separator:
        return Endpoint(text, surface, None)
    host, _, port = place.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{text} is not an address; give a Unix socket's path or tcp://IP:port")
    return Endpoint(text, surface, (host.strip("[]"), int(port)))


def _names() -> set[str]:
    """Returns the default file names of the sockets for generated text."""
    return {paths.socket_path(of).name for of in _GENERATION}


class Addresses:
    """The addresses of the surfaces. In ``given``, ``None`` means that the client was not given the address.

    An address that was not given is derived from the v1 address. If the v1 address was not given either, the
    default address is used. If the v1 address is the path of another socket of the daemon, v1 requests go to
    the v1 socket beside it, if there is one. If the v2 address cannot be derived, v2 requests go to the v1
    address, since v1 sockets accept v2 requests in frames.
    """

    def __init__(self, given: Mapping[paths.Surface, Address | None]) -> None:
        self._given = given

    def of(self, surface: paths.Surface) -> Address:
        """Returns the address of ``surface``. Raises UsageError if the address is unknown."""
        found = self.find(surface)
        given = self._given["v1"]
        if found is None and surface == "v2" and given is not None:
            return given  # v1 sockets, too, accept v2 requests in frames
        if found is None:
            variable = "set INFERD_ADMIN_ADDR, or " if surface == "admin" else ""
            raise UsageError(
                f"the daemon at {given} may serve {surface} anywhere;"
                f" {variable}give the client {surface}=ADDRESS"
            )
        return found

    def find(self, surface: paths.Surface) -> Address | None:
        """Returns the address of ``surface``, or ``None`` if the address is unknown."""
        given, default = self._given.get(surface), paths.socket_path(surface)
        if given is not None:
            if surface != "v1" or Path(given).name not in _names():
                return given
            usual = Path(given).with_name(default.name)
            return usual if usual.exists() else given
        v1 = self._given["v1"]
        if v1 is None:
            return default
        tcp = os.fspath(v1).startswith("tcp://")
        beside = not tcp and Path(v1).name in _names()
        return Path(v1).with_name(default.name) if beside else None


def default_admin_address() -> Address:
    """Returns the admin address that the environment or the config file sets, or else the default address.

    Raises UsageError if ``INFERD_ADDRESS`` names a daemon whose admin address is unknown.
    """
    found = surfaces.addresses()
    return Addresses({"v1": found.get("v1"), "admin": found.get("admin")}).of("admin")
