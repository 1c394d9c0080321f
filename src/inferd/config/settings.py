"""Every option of the daemon, defined once.

A field of :class:`Settings` declares an option: its type and bounds, its default, its flag, its environment
variable, its key in ``config.json``, whether it is secret, whether a reload can change it, and a sentence of
documentation. The fields are in four files, ``*_options.py``. ``OPTIONS`` is the table of all options. The
flags of ``inferd serve``, the parsers of environment and config file, and docs/config.md are generated from
it; no default or bound is defined elsewhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from inferd.config.entries import BackendEntry, surfaces_of
from inferd.config.http_options import HttpOptions
from inferd.config.limit_options import LimitOptions
from inferd.config.model_options import DEFAULT_MODEL, ModelOptions
from inferd.config.option import Option
from inferd.config.socket_options import SocketOptions

__all__ = ["DEFAULT_MODEL", "EXCLUSIVE", "OPTIONS", "TRANSPORTS", "Option", "Settings"]


# dataclasses collects the fields of the last base first.
@dataclass(frozen=True, kw_only=True)
class Settings(LimitOptions, HttpOptions, SocketOptions, ModelOptions):
    """The daemon's settings, made by :func:`inferd.config.sources.read`.

    Of the TCP address and the Unix socket of a surface exactly one is set. A valid configuration has at least
    one backend. Durations are in seconds, sizes in bytes.
    """

    backends: tuple[BackendEntry, ...] = ()
    implicit_surfaces: frozenset[str] = frozenset()
    """Surfaces that are on by default. If their socket cannot be made, the daemon serves without them."""

    @property
    def surfaces(self) -> frozenset[str]:
        """The surfaces to serve, if a backend is capable of them."""
        asked = {"v1", "framed"}.union(*map(surfaces_of, self.backends))
        return frozenset(asked | {name for name in ("v2", "embed", "rerank") if getattr(self, name)})


def _table() -> tuple[Option, ...]:
    rows: list[Option] = []
    for row in dataclasses.fields(Settings):
        if row.metadata:
            meta = dict(row.metadata)
            upper = row.name.upper()
            meta["flag"] = "--" + row.name.replace("_", "-") if meta["flag"] else None
            meta["env"] = f"INFERD_{upper}" if meta["env"] == "" else meta["env"]
            rows.append(Option(name=row.name, **meta))
    return tuple(rows)


OPTIONS: tuple[Option, ...] = _table()

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
