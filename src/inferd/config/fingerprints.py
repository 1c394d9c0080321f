"""Hashes of the settings of a running daemon. The hashes can be compared, but do not reveal the settings.

A command of inferd compares the daemon's hashes with the hashes of its own settings. If the hashes differ,
the command warns the user that the command's environment and config file have no effect on the running
daemon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from inferd.config.limit_options import LimitOptions
from inferd.config.model_options import ModelOptions
from inferd.config.settings import OPTIONS, Settings
from inferd.config.sources import LoadedConfig

# The options without a hash: options that concern only the start of the process, and secrets, because even a
# hash would let a client test guesses.
_LEFT_OUT = {"idle_exit_secs", "log_dir", "core_dumps", *(option.name for option in OPTIONS if option.secret)}
_NAMES = {"backends"} | (
    (vars(ModelOptions).keys() | vars(LimitOptions).keys()) & {option.name for option in OPTIONS}
) - _LEFT_OUT


def of(settings: Settings) -> dict[str, str]:
    """Returns a short hash of the value of each option that affects how requests are served. The keys of the
    result are the names of the options."""
    return {
        name: hashlib.sha256(repr(getattr(settings, name)).encode()).hexdigest()[:12]
        for name in sorted(_NAMES)
    }


def differing(given: LoadedConfig, running: Mapping[str, str]) -> list[str]:
    """Returns the names of the variables and config file keys that set another value than the running daemon
    has."""
    ours = of(given.settings)
    other = {name for name, value in ours.items() if running.get(name, value) != value}
    places = dict.fromkeys(place for name, place in given.origins.items() if name in other)
    if not places and "backends" in other and given.path.exists():
        return ["backends"]
    return list(places)
