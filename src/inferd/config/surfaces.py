"""The addresses at which a client looks for the surfaces of the daemon by default.

``INFERD_ADDRESS`` is the v1 address of a daemon. If ``INFERD_ADDRESS`` is set, ``INFERD_ADMIN_ADDR`` is the
admin address of the same daemon. If ``INFERD_ADDRESS`` is not set, a client reads the addresses from the
environment variables and the config file that also configure the daemon. An address is the path of a Unix
socket or ``tcp://IP:port``. This module ignores an invalid config file, since the daemon reports the errors.
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
    """Returns the addresses of the surfaces. With ``INFERD_ADDRESS``, the result has only the v1 address and
    perhaps the admin address. If neither the environment nor the config file sets an address, returns ``{}``.

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
        # The daemon puts the v2 socket in the directory of a given v1 socket.
        found.setdefault("v2", str(Path(found["v1"]).parent / paths.socket_path("v2", env).name))
    admin = env.get("INFERD_ADMIN_ADDR") or file.get("admin_addr")
    if isinstance(admin, str):
        found["admin"] = admin
    if found:  # all other surfaces are at their default paths, even if the v1 socket is elsewhere
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
