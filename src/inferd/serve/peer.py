"""The identity of the peer of a connection, as far as the system reports it.

The identity is logged with every connection and request. The daemon divides its capacity fairly between these
identities, and never uses them for access control.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Hashable
from typing import NamedTuple

_UCRED = struct.Struct("3i")  # Linux: pid, uid, gid
_XUCRED = struct.Struct("IIh2x16I")  # macOS: version, uid, number of groups, groups
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2


class Peer(NamedTuple):
    """The identity of a peer. ``address`` is set for a TCP connection. ``uid``, ``gid`` and ``pid`` are set
    for a connection through a Unix socket.

    A field that is not set is ``None``.
    """

    transport: str
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    address: str | None = None

    @property
    def caller(self) -> Hashable:
        """The key of the peer's process. Over TCP, the key of the peer's host."""
        return self.address if self.address is not None else (self.owner, self.pid)

    @property
    def owner(self) -> Hashable:
        """The key of the peer's user. Over TCP, the key of the peer's host."""
        return self.address if self.address is not None else self.uid

    def fields(self) -> dict[str, object]:
        """Returns the fields of a log record that describe the peer."""
        if self.address is not None:
            return {"peer": f"tcp:{self.address}"}
        return {"peer": self.transport, "peer_uid": self.uid, "peer_gid": self.gid, "peer_pid": self.pid}


def of(sock: socket.socket) -> Peer:
    """Returns the peer of a connected socket. Never raises. If the system does not report the peer,
    ``address`` is ``"unknown"`` for TCP, and ``uid``, ``gid`` and ``pid`` are ``None`` for a Unix socket."""
    if sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            return Peer("tcp", address=sock.getpeername()[0])
        return Peer("tcp", address="unknown")
    with contextlib.suppress(OSError):
        if sys.platform == "darwin":
            uid, gid = parse_xucred(sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size))
            pid = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
        else:
            pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return Peer("unix", uid=uid, gid=gid, pid=pid)
    return Peer("unix")


def parse_xucred(data: bytes) -> tuple[int, int]:
    """Returns the uid and gid in a ``struct xucred``, the peer credentials of macOS."""
    _, uid, _, *groups = _XUCRED.unpack(data)
    return uid, groups[0]
