"""Every option of the daemon, defined once.

Each attribute of :class:`Settings` declares an option: its type and bounds, its default, its flag, its
environment variable, its key in ``config.json``, whether the value is secret, whether a reload can change the
value, and a text for the documentation. The attributes are in four files, ``*_options.py``. ``OPTIONS`` is
the table of all options. The flags of ``inferd serve``, the parsers of the environment and the config file,
and docs/config.md are generated from ``OPTIONS``. Defaults and bounds are defined in the four files only.
"""

from __future__ import annotations

from typing import Any

from inferd.config.entries import BackendEntry, surfaces_of
from inferd.config.http_options import HttpOptions
from inferd.config.limit_options import LimitOptions
from inferd.config.model_options import DEFAULT_MODEL, ModelOptions
from inferd.config.option import Option, named
from inferd.config.socket_options import SocketOptions

__all__ = ["DEFAULT_MODEL", "EXCLUSIVE", "OPTIONS", "TRANSPORTS", "Option", "Settings"]


class Settings(LimitOptions, HttpOptions, SocketOptions, ModelOptions):
    """The daemon's settings, which are immutable. :func:`inferd.config.sources.read` creates them.

    For each surface, either the TCP address or the path of the Unix socket is set. A valid configuration has
    at least one backend. Durations are in seconds, and sizes in bytes.
    """

    backends: tuple[BackendEntry, ...]
    implicit_surfaces: frozenset[str]
    """The surfaces that are on only by default. If the socket of such a surface cannot be bound, the daemon
    runs without this surface."""

    # Not a dataclass: with this many fields, generating its methods takes 10 ms at each start.
    def __init__(self, **values: Any) -> None:
        unknown = values.keys() - _NAMES
        if unknown:
            raise TypeError(f"there is no option {min(unknown)!r}")
        missing = (option for option in OPTIONS if option.name not in values)
        defaults = {option.name: option.default_for(None) for option in missing}
        self.__dict__.update({"backends": (), "implicit_surfaces": frozenset(), **defaults, **values})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings do not change; use replaced({name}=…)")

    def replaced(self, **values: Any) -> Settings:
        """Returns a copy of these settings in which the options in ``values`` have new values."""
        return Settings(**{**self.__dict__, **values})

    @property
    def surfaces(self) -> frozenset[str]:
        """The surfaces that the configuration enables. The daemon does not open an enabled surface that no
        backend can serve."""
        asked = {"v1", "framed"}.union(*map(surfaces_of, self.backends))
        return frozenset(asked | {name for name in ("v2", "embed", "rerank") if getattr(self, name)})


def _table() -> tuple[Option, ...]:
    parts = (ModelOptions, SocketOptions, HttpOptions, LimitOptions)
    rows = (item for part in parts for item in vars(part).items())
    return tuple(named(row, name) for name, row in rows if isinstance(row, Option))


OPTIONS: tuple[Option, ...] = _table()
_NAMES = {"backends", "implicit_surfaces", *(option.name for option in OPTIONS)}

TRANSPORTS = (
    ("tcp", "uds"),
    ("v2_tcp", "v2_addr"),
    ("embed_tcp", "embed_addr"),
    ("rerank_tcp", "rerank_addr"),
)
"""The address options of each surface. If the TCP address is set, the Unix socket has no default."""

EXCLUSIVE: tuple[tuple[str, ...], ...] = (
    *TRANSPORTS,
    ("model", "model_path"),
    ("api_key", "api_key_file", "api_key_env"),
)
"""Groups of options of which one source (the flags, the environment, or the config file) may set only one."""
