"""Binds the daemon's listening sockets.

:func:`bind_unix` and :func:`bind_tcp` return a :class:`Bound`, whose socket listens and is non-blocking. Both
functions raise AddressError. Sockets that a service manager opened come from :mod:`inferd.daemon.systemd`.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import socket
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from inferd.errors import AddressError
from inferd.serve import peer

BACKLOG = 512  # room for the clients that connect between two calls of accept
MAX_UNIX_PATH_BYTES = 103 if sys.platform == "darwin" else 107  # sun_path less its NUL


class Bound(NamedTuple):
    """A listening socket. ``address`` is the socket's address as messages show it. For a Unix socket,
    ``file`` holds the path, device and inode of the socket's file.

    ``sock`` becomes readable when a connection waits to be accepted.
    """

    sock: socket.socket
    address: str
    file: tuple[Path, int, int] | None = None
    is_tcp: bool = False

    def accept(self) -> tuple[socket.socket, peer.Peer]:
        """Accepts the next connection. Returns the connection and its peer. Raises the errors of
        ``socket.accept``."""
        sock, _ = self.sock.accept()
        return sock, peer.of(sock)

    def is_there(self) -> bool:
        """Whether the file of this socket still exists and has not been replaced. Always true for a TCP
        socket."""
        if self.file is None:
            return True
        path, device, inode = self.file
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # the file system may recover
            return True
        return (found.st_dev, found.st_ino) == (device, inode)

    def close(self) -> None:
        """Stops listening. Removes the socket's file, unless another file has replaced it."""
        self.sock.close()
        if self.file is not None and self.is_there():
            with contextlib.suppress(OSError):
                self.file[0].unlink()


def check_path(path: Path) -> bool:
    """Returns whether there is a socket at ``path``. Raises AddressError if ``path`` is too long for a
    socket, or if another file is there."""
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise AddressError(
            f"socket path {path} is longer than the {MAX_UNIX_PATH_BYTES} bytes that the system allows;"
            " choose a shorter one"
        )
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise AddressError(f"cannot make the socket {path}: {error.strerror or error}") from error
    if stat.S_ISLNK(mode):
        raise AddressError(f"{path} is a symbolic link; remove it or choose another socket path")
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"{path} exists and is not a socket; remove it or choose another socket path")
    return True


def bind_unix(path: Path, mode: int, group: str | None = None) -> Bound:
    """Binds a Unix socket at ``path`` with the file mode ``mode``. If ``group`` is given, the socket's file
    belongs to this group."""
    check_path(path)  # before the directories are made
    gid = -1 if group is None else group_id(group)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o077)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_way(path)
        # The umask sets the socket's mode. In a directory that other users may write, a chmod could follow a
        # link that another user has put in its place. No client can connect before the socket listens.
        os.umask(0o777 & ~mode)
        sock.bind(str(path))
        made = _give_to(path, gid)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise AddressError(f"cannot make the socket {path}: {error.strerror or error}") from error
    except AddressError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return Bound(sock, str(path), (path, made.st_dev, made.st_ino))


def _give_to(path: Path, gid: int) -> os.stat_result:
    """Gives the socket at ``path`` to the group ``gid``, unless ``gid`` is -1. Returns the status of the
    socket's file. Raises OSError if ``path`` is not a socket."""
    if not hasattr(os, "O_PATH"):
        found = path.lstat()
        if stat.S_ISSOCK(found.st_mode):
            os.chown(path, -1, gid, follow_symlinks=False)
    else:
        held = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(held)
            if stat.S_ISSOCK(found.st_mode) and gid != -1:
                os.chown(
                    f"/proc/self/fd/{held}", -1, gid
                )  # by descriptor, in case the path has been replaced
        finally:
            os.close(held)
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "another user has put something else in its place")
    return found


def group_id(group: str) -> int:
    """Raises AddressError if there is no such group."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise AddressError(f"there is no group {group!r} here; create it or name another") from None


def _make_way(path: Path) -> None:
    """Removes the socket at ``path`` if no process serves on it. Raises AddressError if a process serves on
    this socket, or if ``path`` is not a socket."""
    if not check_path(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        outcome = probe.connect_ex(str(path))
    if outcome != errno.ECONNREFUSED:
        raise AddressError(f"another process serves on {path}; stop it or choose another socket path")
    path.unlink()


def parse_tcp(address: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Splits a literal ``IP:port``. An IPv6 address is in brackets."""
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
        if bracketed == (ip.version == 6) and port.isascii() and port.isdecimal() and int(port) < 65536:
            return ip, int(port)
    raise AddressError(f"{address!r} is not a TCP address; write a literal IP:port such as 127.0.0.1:47321")


def check_key(address: str, *, has_key: bool) -> None:
    """Raises AddressError if ``address`` is not a loopback address and no API key is configured."""
    if not has_key and not parse_tcp(address)[0].is_loopback:
        raise AddressError(
            f"refusing to serve on {address} without an API key, anyone who reaches it could use the model;"
            " set INFERD_API_KEY or bind a loopback address"
        )


def bind_tcp(address: str, *, has_key: bool) -> Bound:
    """Binds a TCP socket on a literal ``IP:port``. Without an API key, the address must be a loopback
    address."""
    ip, port = parse_tcp(address)
    check_key(address, has_key=has_key)
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(ip), port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise AddressError(f"cannot serve on {address}: {error.strerror or error}") from error
    return Bound(sock, tcp_address(sock), is_tcp=True)


def tcp_address(sock: socket.socket) -> str:
    """Returns the bound address of a TCP socket, in the form that :func:`parse_tcp` reads."""
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}" if sock.family == socket.AF_INET else f"[{host}]:{port}"
