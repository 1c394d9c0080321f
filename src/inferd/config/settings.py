"""Every option of the daemon, defined once.

Each attribute of :class:`Settings` declares an option: its type and bounds, its default, its flag, its
environment variable, its key in ``config.json``, whether it is secret, whether a reload can change it, and a
sentence of documentation. The attributes are in four files, ``*_options.py``. ``OPTIONS`` is the table of all
options. The flags of ``inferd serve``, the parsers of environment and config file, and docs/config.md are
generated from this table. No default or bound is defined elsewhere.
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
    """The daemon's settings. :func:`inferd.config.sources.read` makes them, and they never change.

    For each surface, either the TCP address or the Unix socket is set. A valid configuration has at least one
    backend. Durations are in seconds, sizes in bytes.
    """

    backends: tuple[BackendEntry, ...]
    implicit_surfaces: frozenset[str]
    """Surfaces that are on by default. If their socket cannot be made, the daemon serves without them."""

    # No dataclass: to generate the methods of one with this many fields takes 10 ms at each start.
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
        """Returns a copy of these settings with other ``values``."""
        return Settings(**{**self.__dict__, **values})

    @property
    def surfaces(self) -> frozenset[str]:
        """The surfaces to serve. A surface that no backend can serve is left out later."""
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
"""The address options of each surface; a given one replaces the default of the last."""

EXCLUSIVE: tuple[tuple[str, ...], ...] = (
    *TRANSPORTS,
    ("model", "model_path"),
    ("api_key", "api_key_file", "api_key_env"),
)
"""Mutually exclusive options, if they come from the same source."""
