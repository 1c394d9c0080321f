"""Asks the kernel which user is at the other end of a loopback TCP connection.

Only Linux supports this query (``sock_diag``). On other systems, and for a peer in another network namespace,
the result is ``None``.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG = struct.Struct("=IHHII")
# inet_diag_req_v2: family, protocol, ext, pad, states, then inet_diag_sockid: ports (network order), both
# addresses, interface, cookie.
_REQUEST = struct.Struct("=BBBBI2s2s16s16sIII")
# inet_diag_msg up to the uid: four bytes, the sockid (48 bytes), expires, rqueue, wqueue, uid.
_UID_OFFSET = 4 + 48 + 12
_ANY_COOKIE = 0xFFFFFFFF
_TIMEOUT_SECS = 1.0

Place = tuple[str, int]


class Peer:
    """The user of one connection. The kernel is asked only once, because the owner of a socket does not
    change."""

    def __init__(self) -> None:
        self._known: tuple[int | None] | None = None

    def uid(self, client: Place, server: Place) -> int | None:
        """Returns the result of :func:`uid_of` for the connection. Only the first call asks the kernel."""
        if self._known is None:
            self._known = (uid_of(client, server),)
        return self._known[0]


def uid_of(client: Place, server: Place) -> int | None:
    """Returns the uid that owns the client's end of the TCP connection from ``client`` to ``server``, or
    ``None`` if unknown."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        near, far = ipaddress.ip_address(client[0]), ipaddress.ip_address(server[0])
        family = socket.AF_INET6 if near.version == 6 else socket.AF_INET
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(_TIMEOUT_SECS)
            netlink.send(_request(family, (near.packed, client[1]), (far.packed, server[1])))
            return _uid(netlink.recv(4096))
    except (OSError, ValueError):
        return None


def _request(family: int, source: tuple[bytes, int], target: tuple[bytes, int]) -> bytes:
    body = _REQUEST.pack(
        family,
        socket.IPPROTO_TCP,
        0,
        0,
        0xFFFFFFFF,
        source[1].to_bytes(2, "big"),
        target[1].to_bytes(2, "big"),
        source[0],
        target[0],
        0,
        _ANY_COOKIE,
        _ANY_COOKIE,
    )
    head = _NLMSG.pack(_NLMSG.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    return head + body


def _uid(answer: bytes) -> int | None:
    if len(answer) < _NLMSG.size:
        return None
    kind = _NLMSG.unpack_from(answer)[1]
    at = _NLMSG.size + _UID_OFFSET
    if kind != _SOCK_DIAG_BY_FAMILY or len(answer) < at + 4:
        return None
    uid: int = struct.unpack_from("=I", answer, at)[0]
    return uid
