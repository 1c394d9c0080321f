"""Where inferd keeps its sockets, lock, logs, history and models.

The daemon and every client use these rules, so that they always meet. Each function is pure: it reads the
environment it is given (``os.environ`` when none is given), makes nothing and needs nothing to exist. An
empty variable counts as unset, and so does a relative ``XDG_RUNTIME_DIR`` or ``XDG_DATA_HOME``, as the XDG
base directory specification asks.
"""

from __future__ import annotations

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
    """The directory of the sockets and the lock."""
    parent = _absolute(env, "TMPDIR" if sys.platform == "darwin" else "XDG_RUNTIME_DIR")
    if parent is not None:
        return parent / "inferd"
    home = _home(env)
    if home is not None:
        return home / ".inferd" / "run"
    return Path(f"/tmp/inferd-{os.getuid()}")  # noqa: S108 - whoever makes it checks its owner


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
    """The default socket of the framed wire."""
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
    """The lock that a running daemon holds."""
    return runtime_dir(env) / "inferd.lock"


def state_dir(env: Env = None) -> Path:
    """``~/.inferd``; without a home directory, the runtime directory."""
    home = _home(env)
    return home / ".inferd" if home is not None else runtime_dir(env)


def config_path(env: Env = None) -> Path:
    """The config file that is read when no other is named."""
    return state_dir(env) / "config.json"


def history_path(env: Env = None) -> Path:
    """The input history of ``inferd chat``."""
    return state_dir(env) / "history"


def log_dir(env: Env = None) -> Path:
    """The directory of the activity log."""
    return state_dir(env) / "logs"


def models_home(env: Env = None) -> Path:
    """The model store, which other tools may share, and which they all find by ``MODELS_HOME``."""
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
