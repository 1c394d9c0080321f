"""Finds the process that holds a TCP port, for the error message about a taken port. Only processes of this
user are found."""

from __future__ import annotations

import contextlib
from pathlib import Path

_LISTEN = "0A"


def of(address: str) -> str | None:
    """Returns the name and pid of the process that listens on the port of ``IP:port``, or ``None`` if no such
    process is found."""
    port = int(address.rpartition(":")[2])
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(_inode_of(fd) in inodes for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _listening(table: str, port: int) -> list[str]:
    """Returns the inodes of the sockets that listen on the port, from one of the tables in /proc/net."""
    try:
        rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return []
    fields = [row.split() for row in rows]
    return [row[9] for row in fields if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _inode_of(fd: Path) -> str:
    with contextlib.suppress(OSError):
        target = str(fd.readlink())
        if target.startswith("socket:["):
            return target[8:-1]
    return ""
