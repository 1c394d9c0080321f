"""Hashes of a running daemon's settings: comparable, but not readable.

A command compares them with its own, since its environment and config file have no effect on the models and
limits of a running daemon.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from inferd.config.limit_options import LimitOptions
from inferd.config.model_options import ModelOptions
from inferd.config.settings import OPTIONS, Settings
from inferd.config.sources import LoadedConfig

# Options that concern only the start of the process, and secrets, which must not even be compared.
_LEFT_OUT = {"idle_exit_secs", "log_dir", "core_dumps", *(option.name for option in OPTIONS if option.secret)}
_NAMES = {"backends"} | (
    (vars(ModelOptions).keys() | vars(LimitOptions).keys()) & {option.name for option in OPTIONS}
) - _LEFT_OUT


def of(settings: Settings) -> dict[str, str]:
    """Option name → short hash of its value, for the options that affect serving."""
    return {
        name: hashlib.sha256(repr(getattr(settings, name)).encode()).hexdigest()[:12]
        for name in sorted(_NAMES)
    }


def differing(given: LoadedConfig, running: Mapping[str, str]) -> list[str]:
    """The places (variables, keys of the config file) whose values differ from the running daemon's."""
    ours = of(given.settings)
    other = {name for name, value in ours.items() if running.get(name, value) != value}
    places = dict.fromkeys(place for name, place in given.origins.items() if name in other)
    if not places and "backends" in other and given.path.exists():
        return ["backends"]
    return list(places)
