"""Hashes of a running daemon's settings. A client can compare them, but cannot read the settings.

A command compares these hashes with those of its own settings. The command warns about a difference, since
its environment and config file have no effect on a running daemon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from inferd.config.limit_options import LimitOptions
from inferd.config.model_options import ModelOptions
from inferd.config.settings import OPTIONS, Settings
from inferd.config.sources import LoadedConfig

# The options that are left out: those that concern only the start of the process, and secrets, which must not
# even be compared.
_LEFT_OUT = {"idle_exit_secs", "log_dir", "core_dumps", *(option.name for option in OPTIONS if option.secret)}
_NAMES = {"backends"} | (
    (vars(ModelOptions).keys() | vars(LimitOptions).keys()) & {option.name for option in OPTIONS}
) - _LEFT_OUT


def of(settings: Settings) -> dict[str, str]:
    """Returns a short hash of the value of each option that affects serving, by option name."""
    return {
        name: hashlib.sha256(repr(getattr(settings, name)).encode()).hexdigest()[:12]
        for name in sorted(_NAMES)
    }


def differing(given: LoadedConfig, running: Mapping[str, str]) -> list[str]:
    """Returns the variables and config file keys whose values differ from those of the running daemon."""
    ours = of(given.settings)
    other = {name for name, value in ours.items() if running.get(name, value) != value}
    places = dict.fromkeys(place for name, place in given.origins.items() if name in other)
    if not places and "backends" in other and given.path.exists():
        return ["backends"]
    return list(places)
