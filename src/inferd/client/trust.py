"""Checks whether a client may send prompts to the server of a Unix socket.

In a directory that everyone may write, such as /tmp, another user can create the socket's directory before
the daemon does, and so impersonate the daemon. A server that runs as this user or as root is trusted. A
server of another user is trusted if that user owns a directory or file on the socket's path, and only trusted
users can write the directory above it. Then only a trusted user can have put it there. For example,
/run/inferd, which belongs to the user ``inferd``, is trusted, since only root can write /run.
/tmp/inferd-1000 of another user is not trusted.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from pathlib import Path

from inferd.errors import DaemonUntrusted

_UCRED = struct.Struct("3i")  # Linux: pid, uid, gid


def require_trusted(connected: socket.socket, path: str) -> None:
    """Raises DaemonUntrusted if the server at ``path``, to which ``connected`` is connected, runs as an
    untrusted user."""
    server = _server_uid(connected, path)
    trusted = {0, os.geteuid()}
    if server not in trusted and server not in _owners(Path(path).absolute(), trusted):
        raise DaemonUntrusted(
            f"the socket {path} is served by another user (uid {server}), in a directory that others may"
            " write; remove it, or have that user serve in a directory of their own"
        )


def server_pid(connected: socket.socket) -> int | None:
    """Returns the pid of the process that created the server's socket, or ``None`` on a system other than
    Linux."""
    return _credentials(connected)[0] if sys.platform == "linux" else None


def _server_uid(connected: socket.socket, path: str) -> int:
    return _credentials(connected)[1] if sys.platform == "linux" else os.lstat(path).st_uid


def _credentials(connected: socket.socket) -> tuple[int, int]:
    pid, uid, _ = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def _owners(path: Path, trusted: set[int]) -> set[int]:
    """Returns the users that may serve at ``path``: the ``trusted`` users, and further owners of files and
    directories on the path. The path is checked from the root down. An owner is added if only ``trusted``
    users and previously added owners can write the directory above the file or directory.

    If any other user may have created a part of the path, returns only ``trusted``. Both the given path and
    the path after resolving links are checked.
    """
    found = set(trusted)
    for way in (path, path.resolve()):
        is_given = True  # the root directory belongs to root
        for place in (*reversed(way.parents), way):
            status = place.lstat()
            if status.st_uid not in found:
                if not is_given:
                    return trusted
                found.add(status.st_uid)
            if not stat.S_ISLNK(status.st_mode):
                is_given = not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found
