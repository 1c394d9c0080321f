"""The paths of inferd's sockets, lock, logs, history and models.

The daemon and its clients compute the paths with the same functions, so that the clients find the daemon.
Each function reads the environment ``env`` (by default ``os.environ``). No function creates a file, and no
function needs a directory to exist. A variable that is empty counts as unset. If ``XDG_RUNTIME_DIR`` or
``XDG_DATA_HOME`` contains a relative path, the variable also counts as unset, as the XDG base directory
specification requires.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Surface = Literal["v1", "v2", "framed", "embed", "rerank", "admin"]

_LEAVES: dict[Surface, str] = {
    "v1": "infer.sock",
    "v2": "infer.v2.sock",
    "framed": "inferd.sock",
    "embed": "infer.embed.sock",
    "rerank": "infer.rerank.sock",
    "admin": "admin.sock",
}

Env = Mapping[str, str] | None


def _absolute(env: Env, name: str) -> Path | None:
    path = Path((os.environ if env is None else env).get(name, ""))
    return path if path.is_absolute() else None


def _home(env: Env) -> Path | None:
    return _absolute(env, "HOME")


def runtime_dir(env: Env = None) -> Path:
    """Returns the directory of the sockets and the lock.

    The directory is ``inferd`` in ``XDG_RUNTIME_DIR`` (on macOS, in ``TMPDIR``). If this variable is unset,
    the directory is ~/.inferd/run. If ``HOME`` is unset, too, the directory is /tmp/inferd-UID.

    A process that cron, su or ssh has started may lack the ``XDG_RUNTIME_DIR`` of the user's login session,
    which is /run/user/UID. Therefore, the function checks on Linux whether a daemon of the user runs in
    /run/user/UID/inferd or in ~/.inferd/run. If a daemon runs in exactly one of these directories, the
    function returns that directory, whether or not the variable is set. The function does not check this if
    the variable is set to a directory other than /run/user/UID.
    """
    parent = _absolute(env, "TMPDIR" if sys.platform == "darwin" else "XDG_RUNTIME_DIR")
    home = _home(env)
    own = Path(f"/tmp/inferd-{os.getuid()}") if home is None else home / ".inferd" / "run"  # noqa: S108
    if sys.platform != "linux":
        return own if parent is None else parent / "inferd"
    session = _SESSIONS / str(os.getuid())
    if parent is None:
        return session / "inferd" if not _runs_in(own) and _runs_in(session / "inferd") else own
    if parent == session and not _runs_in(parent / "inferd") and _runs_in(own):
        return own
    return parent / "inferd"


_SESSIONS = Path("/run/user")


def _runs_in(directory: Path) -> bool:
    """Whether a daemon of this user holds the lock in ``directory``."""
    try:
        if directory.stat().st_uid != os.getuid():
            return False
        fd = os.open(directory / "inferd.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def socket_path(surface: Surface, env: Env = None) -> Path:
    """The default Unix socket of a surface."""
    return runtime_dir(env) / _LEAVES[surface]


def inference_socket_path(env: Env = None) -> Path:
    """The default v1 socket."""
    return socket_path("v1", env)


def v2_socket_path(env: Env = None) -> Path:
    """The default v2 socket."""
    return socket_path("v2", env)


def framed_socket_path(env: Env = None) -> Path:
    """The default socket for length-prefixed frames."""
    return socket_path("framed", env)


def embed_socket_path(env: Env = None) -> Path:
    """The default embed socket."""
    return socket_path("embed", env)


def rerank_socket_path(env: Env = None) -> Path:
    """The default rerank socket."""
    return socket_path("rerank", env)


def admin_socket_path(env: Env = None) -> Path:
    """The default admin socket."""
    return socket_path("admin", env)


def lock_path(env: Env = None) -> Path:
    """Returns the path of the lock that a running daemon holds."""
    return runtime_dir(env) / "inferd.lock"


def state_dir(env: Env = None) -> Path:
    """Returns ``~/.inferd``, or the runtime directory if there is no home directory."""
    home = _home(env)
    return home / ".inferd" if home is not None else runtime_dir(env)


def config_path(env: Env = None) -> Path:
    """The default config file."""
    return state_dir(env) / "config.json"


def history_path(env: Env = None) -> Path:
    """The input history of ``inferd chat``."""
    return state_dir(env) / "history"


def log_dir(env: Env = None) -> Path:
    """The directory of the activity log."""
    return state_dir(env) / "logs"


def cache_dir(env: Env = None) -> Path:
    """The directory of the files in which the prefix cache keeps KV caches."""
    return state_dir(env) / "cache"


def templates_path(env: Env = None) -> Path:
    """The file of the findings about chat templates (:mod:`inferd.daemon.templates`)."""
    return state_dir(env) / "templates.json"


def models_home(env: Env = None) -> Path:
    """Returns the directory of the model store, which other tools may share. ``MODELS_HOME`` overrides the
    default directory."""
    named = (os.environ if env is None else env).get("MODELS_HOME", "")
    if named:
        return Path(named).expanduser()
    shared = _absolute(env, "XDG_DATA_HOME")
    if shared is not None:
        return shared / "models"
    home = _home(env)
    if home is None:
        return state_dir(env) / "models"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "models"
    return home / ".local" / "share" / "models"
