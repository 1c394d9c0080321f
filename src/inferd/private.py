"""Files and directories that only their owner can write.

The standard library creates missing parent directories with the default mode. inferd creates each missing
directory with mode 0700, so that no other user can add a file to the directory. Existing directories are not
changed.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def make_private_dirs(path: Path) -> None:
    """Creates ``path`` and its missing parents with mode 0700. Raises OSError."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it exists and is not a directory", str(path))


def written_by_others(path: Path, fd: int) -> str | None:
    """Returns a sentence that says how another user can change or replace the file ``path``, which is open as
    ``fd``. Returns ``None`` if no other user can.

    Root and this user are trusted. A directory that other users can write to is accepted if it has the sticky
    bit, because this bit prevents other users from replacing this user's files. Raises OSError.
    """
    where = path.absolute()
    parents = {*where.parents, *where.resolve().parents}
    looked_at = [(path, os.fstat(fd)), (path, where.lstat()), *((each, each.stat()) for each in parents)]
    for name, found in looked_at:
        if found.st_uid not in (0, os.getuid()):
            return f"{name} belongs to another user"
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if _others_write(found) and not sticky and not stat.S_ISLNK(found.st_mode):
            return f"{name} can be written by other users (run: chmod go-w {name})"
    return None


def _others_write(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found.st_gid)


def _is_own_group(gid: int) -> bool:
    """Whether this user is the only member of the group. On many systems each user has a group of the same
    name."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
