"""The checks of ``inferd doctor`` for the directories, sockets, ports and limits that a daemon needs.

The checks create and remove nothing. A port is tested by binding it for a moment, and only if no daemon runs.
"""

from __future__ import annotations

import errno
import grp
import os
import resource
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from inferd.cli.finding import Finding, Findings
from inferd.client import Client
from inferd.config.limit_options import OTHER_DESCRIPTORS
from inferd.config.settings import Settings
from inferd.errors import InferdError
from inferd.store.runtime import holder, is_held

ANSWER_SECS = 5.0


def runtime_directory(settings: Settings) -> Findings:
    paths = [path for _, _, path in _sockets(settings) if path is not None]
    for directory in sorted({path.parent for path in paths} | {settings.lock.parent}):
        yield _directory("runtime directory", directory, "XDG_RUNTIME_DIR", private=True)


def log_directory(settings: Settings) -> Findings:
    yield _directory("log directory", settings.log_dir, "INFERD_LOG_DIR")


def model_store(settings: Settings) -> Findings:
    home = settings.models_home
    finding = _directory("model store", home, "MODELS_HOME")
    if finding.state == "fail" and os.access(home / "blobs", os.R_OK | os.X_OK):
        advice = "its owner adds models; for models of your own, name another directory in MODELS_HOME"
        finding = Finding(finding.name, "warn", f"{home} can be read, but not written", advice)
    elif finding.state == "ok":
        free = shutil.disk_usage(_nearest(home)).free
        finding = Finding(finding.name, "ok", f"{finding.detail}; {free / 1e9:.1f} GB free")
    yield finding


def named_address(_: Settings) -> Findings:
    """Checks that a daemon answers at the address in INFERD_ADDRESS. Clients use that daemon instead of this
    user's daemon.
    """
    named = os.environ.get("INFERD_ADDRESS")
    if not named:
        return
    try:
        with Client(named, timeout=ANSWER_SECS) as client:
            client.connect()
    except InferdError as error:
        yield Finding("INFERD_ADDRESS", "fail", str(error), "unset it to use a daemon of this user")
    else:
        yield Finding("INFERD_ADDRESS", "ok", f"a daemon answers at {named}, which commands and programs use")


def _nearest(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _directory(name: str, path: Path, variable: str, private: bool = False) -> Finding:
    """Checks that ``path`` is a writable directory, or can be created as one.

    With ``private``, no other user may have write access. The advice names ``variable``, the environment
    variable that selects another directory.
    """
    there = _nearest(path)
    elsewhere = f"name another directory in {variable}"
    if not there.is_dir():
        return Finding(name, "fail", f"{there} is not a directory", f"move it away, or {elsewhere}")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return Finding(name, "fail", f"{path} is on a file system that is read-only", elsewhere)
    if there != path:
        if os.access(there, os.W_OK | os.X_OK):
            return Finding(name, "ok", f"{path} is made when it is needed")
        advice = f"make {there} writable for this user, or {elsewhere}"
        return Finding(name, "fail", f"{path} cannot be made in {there}", advice)
    if not os.access(path, os.W_OK | os.X_OK):
        advice = f"run: chmod u+rwx {path}, or change its owner, or {elsewhere}"
        return Finding(name, "fail", f"{path} cannot be written", advice)
    mode = stat.S_IMODE(path.stat().st_mode)
    if private and mode & 0o022:
        return Finding(
            name, "warn", f"{path} can be written by others (mode {mode:04o})", f"run: chmod 0700 {path}"
        )
    return Finding(name, "ok", str(path))


_HTTP = "HTTP bridge"


def _sockets(settings: Settings) -> Iterator[tuple[str, str | None, Path | None]]:
    """Yields the name, the TCP address and the path of each socket of the daemon. An address or a
    path that the socket does not have is ``None``."""
    yield "admin socket", None, settings.admin_addr
    names = {
        "v1": "inference socket",
        "v2": "v2 socket",
        "framed": "frames socket",
        "embed": "embed socket",
        "rerank": "rerank socket",
    }
    places = {
        "v1": (settings.tcp, settings.uds),
        "v2": (settings.v2_tcp, settings.v2_addr),
        "framed": (None, settings.framed_addr),
        "embed": (settings.embed_tcp, settings.embed_addr),
        "rerank": (settings.rerank_tcp, settings.rerank_addr),
    }
    for surface, name in names.items():
        if surface in settings.surfaces:
            yield name, *places[surface]
    metrics = settings.metrics_addr
    if metrics is not None:
        yield "metrics socket", *((None, Path(metrics)) if "/" in metrics else (metrics, None))
    if settings.http is not None:
        yield _HTTP, settings.http, None


def sockets(settings: Settings) -> Findings:
    running = True
    with suppress(InferdError, OSError):  # reported by :func:`lock`
        running = is_held(settings.lock)
    for name, tcp, path in _sockets(settings):
        if path is not None:
            yield _unix(name, path, running)
        elif tcp is not None:
            yield _tcp(name, tcp, settings, running)
    if settings.group is not None:
        yield _group(settings.group)


def _listens(path: Path) -> bool:
    """Whether a process listens on the socket. Does not connect to the socket. Works only on Linux."""
    try:
        rows = Path("/proc/net/unix").read_text().splitlines()
    except OSError:
        return False
    return any(row.endswith(f" {path}") and row.split()[3] == "00010000" for row in rows)


def _unix(name: str, path: Path, running: bool) -> Finding:
    from inferd.serve.bind import MAX_UNIX_PATH_BYTES

    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        detail = f"{path} is longer than the {MAX_UNIX_PATH_BYTES} bytes that a socket's path may have"
        return Finding(name, "fail", detail, "choose a shorter path")
    if not os.path.lexists(path):
        return Finding(name, "ok", f"{path} is free")
    if path.is_symlink() or not path.is_socket():
        return Finding(name, "fail", f"{path} is not a socket and occupies the path", "move it away")
    if not running and _listens(path):
        return Finding(name, "ok", f"{path} starts a daemon for the first client")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ANSWER_SECS)
        try:
            sock.connect(str(path))
        except PermissionError:
            advice = "have the daemon serve a group that you are in: inferd serve --group GROUP"
            return Finding(name, "fail", f"{path} may not be opened by this user", advice)
        except (BlockingIOError, TimeoutError):
            return Finding(
                name, "fail", f"{path} exists, but no daemon listens", "restart the daemon: inferd stop"
            )
        except OSError:
            advice = "the next daemon removes it"
            return Finding(name, "warn", f"{path} is left over: no daemon answers", advice)
    return Finding(name, "ok", f"{path} answers")


def _tcp(name: str, address: str, settings: Settings, running: bool) -> Finding:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(ANSWER_SECS)
        if running and port != "0" and sock.connect_ex((host, int(port))) == 0:
            return Finding(name, "ok", f"{address} answers")
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, int(port)))
        except OSError as error:
            reason, advice = {
                errno.EADDRINUSE: (
                    "is taken by another program",
                    "choose another port, or stop that program",
                ),
                errno.EADDRNOTAVAIL: ("is not an address of this machine", "choose one of `ip address`"),
                errno.EACCES: ("is a port for root alone", "choose a port from 1024 on"),
            }.get(error.errno or 0, (f"cannot be bound: {error.strerror}", "choose another address"))
            return Finding(name, "fail", f"{address} {reason}", advice)
    from inferd.serve.bind import check_key

    keys = (settings.api_key, settings.http_key_file if name == _HTTP else None)
    check_key(address, has_key=any(key is not None for key in keys))
    if name == _HTTP:
        from inferd.http import files

        files.check(settings.http_key_file, settings.http_cert, settings.http_key)
    return Finding(name, "ok", f"{address} is free")


def _group(name: str) -> Finding:
    try:
        group = grp.getgrnam(name)
    except KeyError:
        return Finding("group", "fail", f"there is no group {name!r}", f"as root: groupadd {name}")
    if os.getuid() != 0 and group.gr_gid not in {os.getgid(), *os.getgroups()}:
        advice = f"as root: usermod -aG {name} USER; then log in again"
        return Finding("group", "fail", f"you are not in the group {name!r}", advice)
    return Finding("group", "ok", f"members of {name!r} may connect")


def lock(settings: Settings) -> Findings:
    if is_held(settings.lock):
        pid = holder(settings.lock) or "unknown"
        yield Finding("lock", "ok", f"{settings.lock} is held by process {pid}")
    else:
        yield Finding("lock", "ok", f"{settings.lock} is free")


def open_files(settings: Settings) -> Findings:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # the daemon raises its soft limit to the hard one
    needed = settings.max_connections + OTHER_DESCRIPTORS
    if limit != resource.RLIM_INFINITY and limit < needed:
        detail = (
            f"a process may have {limit} open files; {settings.max_connections} connections need {needed}"
        )
        yield Finding("open files", "warn", detail, "raise the hard limit, or lower --max-connections")
    else:
        many = "any number of" if limit == resource.RLIM_INFINITY else str(limit)
        yield Finding("open files", "ok", f"a process may have {many} open files")
