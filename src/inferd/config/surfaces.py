"""The addresses at which a client finds the surfaces of the daemon by default.

``INFERD_ADDRESS`` names a socket of a daemon. With ``INFERD_ADDRESS``, ``INFERD_ADMIN_ADDR`` names the admin
socket of the same daemon. Without ``INFERD_ADDRESS``, clients read the variables and the config file of the
daemon. An address is the path of a Unix socket or ``tcp://IP:port``. An invalid config file is ignored here,
since the daemon reports it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferd.config import paths
from inferd.config.paths import Surface
from inferd.errors import ConfigError
from inferd.private import written_by_others

# Surface → variables of its TCP address and its socket, and its key in the config file.
_PLACES: dict[Surface, tuple[str, str, str]] = {
    "v1": ("INFERD_TCP", "INFERD_UDS", "tcp"),
    "v2": ("INFERD_V2_TCP", "INFERD_V2_ADDR", "tcp_v2"),
    "embed": ("INFERD_EMBED_TCP", "INFERD_EMBED_ADDR", "tcp_embed"),
    "rerank": ("INFERD_RERANK_TCP", "INFERD_RERANK_ADDR", "tcp_rerank"),
}


def addresses(env: Mapping[str, str] | None = None) -> dict[Surface, str]:
    """Returns the addresses that the environment and the config file set. Other surfaces are not in the
    result.

    Raises ConfigError if another user may write the config file.
    """
    env = os.environ if env is None else env
    named = env.get("INFERD_ADDRESS")
    if named:
        own_admin = env.get("INFERD_ADMIN_ADDR")
        return {"v1": named, "admin": own_admin} if own_admin else {"v1": named}
    file = _file(env)
    listen = file.get("listen")
    found: dict[Surface, str] = {}
    for surface, (tcp, socket, key) in _PLACES.items():
        in_file = listen.get(key) if isinstance(listen, dict) else None
        if env.get(tcp):
            found[surface] = f"tcp://{env[tcp]}"
        elif env.get(socket):
            found[surface] = env[socket]
        elif isinstance(in_file, str):
            found[surface] = f"tcp://{in_file}"
    if env.get("INFERD_UDS") and "v1" in found and not found["v1"].startswith("tcp://"):
        # The daemon puts v2 next to a given v1 socket.
        found.setdefault("v2", str(Path(found["v1"]).with_name(paths.socket_path("v2", env).name)))
    admin = env.get("INFERD_ADMIN_ADDR") or file.get("admin_addr")
    if isinstance(admin, str):
        found["admin"] = admin
    if found:  # the others are at their default paths, which do not follow v1
        for surface in (*_PLACES, "admin"):
            found.setdefault(surface, str(paths.socket_path(surface, env)))
    return found


def _file(env: Mapping[str, str]) -> dict[str, Any]:
    named = env.get("INFERD_CONFIG")
    path = Path(named).expanduser() if named else paths.config_path(env)
    try:
        with path.open("rb") as file:
            danger = written_by_others(path, file.fileno())
            found = json.loads(file.read().decode("utf-8-sig")) if danger is None else None
    except (OSError, ValueError, RecursionError):
        return {}
    if danger is not None:
        raise ConfigError(f"config file {path}: is refused: {danger}, who could redirect your prompts")
    return found if isinstance(found, dict) else {}
