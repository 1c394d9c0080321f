"""From flags, environment and config file to Settings.

Each option is taken from the first place that gives it: flag, environment, config file, default. What a
lower place says about an option that excludes a chosen one is dropped with it. :func:`read` never fails
because of the config file: a daemon needs its lock and its admin socket before it can report that, so the
problem is handed over for the boot to raise in its turn.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferd.config import paths
from inferd.config.entries import BackendEntry, LlamaCppEntry, MockEntry, ModelSpec
from inferd.config.file import ConfigFile, read_file
from inferd.config.kinds import FilePath, Kind, Secret, SecretText
from inferd.config.settings import EXCLUSIVE, OPTIONS, TRANSPORTS, Settings
from inferd.errors import ConfigError, UsageError


@dataclass(frozen=True, slots=True)
class Read:
    """Settings with what a person should be told: ``notes`` to log, and ``problem`` to end the boot with.

    With a ``problem`` the settings come from flags, environment and defaults alone.
    """

    settings: Settings
    notes: tuple[str, ...] = ()
    problem: ConfigError | None = None


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    origin: str
    from_file: bool = False


def read(flags: Mapping[str, object], env: Mapping[str, str] | None = None) -> Read:
    """Reads every source.

    ``flags`` maps option names, and ``config`` for the config file, to parsed values; ``None`` is not given.
    Raises UsageError for flags that exclude each other and ConfigError for an unusable variable or key file.
    """
    env = os.environ if env is None else env
    notes: list[str] = []
    levels = [_from_flags(flags), _from_env(env)]
    for level, error in zip(levels, (UsageError, ConfigError), strict=True):
        _check_exclusive(level, error)
    if "api_key" in levels[0]:
        notes.append(
            "--api-key shows the key to every user of this machine in the process list;"
            " prefer INFERD_API_KEY or --api-key-file"
        )
    path, named = _config_path(flags, env)
    try:
        file = read_file(path, required=named)
        notes.extend(file.warnings)
        levels.append({name: _Given(value, f"`{key}`", True) for name, (key, value) in file.values.items()})
        _check_exclusive(levels[2], ConfigError, f"config file {path}: ")
        settings = _build(_choose(levels, notes), env, file, notes)
    except ConfigError as problem:
        settings = _build(_choose(levels[:2], []), env, ConfigFile(), [])
        return Read(settings, tuple(notes), problem)
    return Read(settings, tuple(notes))


def load(flags: Mapping[str, object], env: Mapping[str, str] | None = None) -> tuple[Settings, list[str]]:
    """Like :func:`read`, but raises the config file's problem at once."""
    result = read(flags, env)
    if result.problem is not None:
        raise result.problem
    return result.settings, list(result.notes)


def _from_flags(flags: Mapping[str, object]) -> dict[str, _Given]:
    return {
        option.name: _Given(flags[option.name], option.flag)
        for option in OPTIONS
        if option.flag is not None and flags.get(option.name) is not None
    }


def _from_env(env: Mapping[str, str]) -> dict[str, _Given]:
    level: dict[str, _Given] = {}
    for option in OPTIONS:
        text = env.get(option.env, "") if option.env is not None else ""
        if text and option.env is not None:
            level[option.name] = _Given(_parsed(option.env, option.kind, text), option.env)
    return level


def _parsed(variable: str, kind: Kind, text: str) -> Any:
    try:
        return kind.parse(text)
    except ValueError as reason:
        shown = "" if isinstance(kind, SecretText) else f", not {text!r}"
        raise ConfigError(f"{variable} must be {reason}{shown}") from None


def _check_exclusive(level: Mapping[str, _Given], error: type[ConfigError], where: str = "") -> None:
    for group in EXCLUSIVE:
        both = [level[name].origin for name in group if name in level]
        if len(both) > 1:
            raise error(f"{where}{both[0]} and {both[1]} exclude each other; give one of them")


def _config_path(flags: Mapping[str, object], env: Mapping[str, str]) -> tuple[Path, bool]:
    flag = flags.get("config")
    if isinstance(flag, Path):
        return flag, True
    variable = env.get("INFERD_CONFIG", "")
    if variable:
        return _parsed("INFERD_CONFIG", FilePath(), variable), True
    return paths.config_path(env), False


def _choose(levels: list[dict[str, _Given]], notes: list[str]) -> dict[str, _Given]:
    chosen: dict[str, _Given] = {}
    for level in levels:
        above = dict(chosen)
        for name, given in level.items():
            rivals = [name, *(other for group in EXCLUSIVE if name in group for other in group)]
            winner = next((above[rival] for rival in rivals if rival in above), None)
            if winner is None:
                chosen[name] = given
            elif given.from_file:
                notes.append(f"{winner.origin} overrides {given.origin} of the config file")
    return chosen


def _build(
    chosen: Mapping[str, _Given], env: Mapping[str, str], file: ConfigFile, notes: list[str]
) -> Settings:
    values: dict[str, Any] = {option.name: option.default_for(env) for option in OPTIONS}
    values.update({name: given.value for name, given in chosen.items()})
    for tcp, unix in TRANSPORTS:
        if values[tcp] is not None:
            values[unix] = None
    values["api_key"] = _api_key(values, env)
    settings = Settings(**values)
    return dataclasses.replace(settings, backends=_backends(settings, chosen, file, notes))


def _api_key(values: Mapping[str, Any], env: Mapping[str, str]) -> Secret | None:
    if values["api_key_file"] is not None:
        return _read_key(values["api_key_file"])
    if values["api_key_env"] is not None:
        name: str = values["api_key_env"]
        if not env.get(name):
            raise ConfigError(
                f"`listen.api_key_env` names {name}, which is not set; set it or remove the key from the file"
            )
        return Secret(env[name])
    key: Secret | None = values["api_key"]
    return key


def _read_key(path: Path) -> Secret:
    try:
        with path.open(encoding="utf-8") as file:
            key = file.readline(8192).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"API key file {path} cannot be read: {reason}") from None
    if not key:
        raise ConfigError(f"API key file {path} is empty; its first line must be the key")
    return Secret(key)


_ENTRY_OPTIONS = ("model", "model_path", "model_sha256", "n_ctx", "n_gpu_layers")


def _backends(
    settings: Settings, chosen: Mapping[str, _Given], file: ConfigFile, notes: list[str]
) -> tuple[BackendEntry, ...]:
    """The file's entries, of the kind that was asked for, with explicit options laid over the first."""
    entries = [_entry_of_file(entry, settings) for entry in file.backends]
    explicit = {
        name: chosen[name] for name in _ENTRY_OPTIONS if name in chosen and not chosen[name].from_file
    }
    if "backend" in chosen and entries:
        kept = [entry for entry in entries if entry.kind == settings.backend]
        if len(kept) < len(entries):
            notes.append(f"{chosen['backend'].origin} overrides `backends` of the config file")
        entries = kept
    if not entries:
        entries = [_entry_of_options(settings)]
    elif explicit:
        for position, entry in enumerate(entries):
            if isinstance(entry, LlamaCppEntry):
                origins = ", ".join(given.origin for given in explicit.values())
                notes.append(f"{origins} overrides the entry {entry.name!r} of the config file")
                entries[position] = _overlay(entry, settings, explicit)
                break
    if explicit and not any(isinstance(entry, LlamaCppEntry) for entry in entries):
        origins = ", ".join(given.origin for given in explicit.values())
        notes.append(f"{origins} has no effect without a llamacpp backend")
    return tuple(entries)


def _entry_of_file(entry: Mapping[str, Any], settings: Settings) -> BackendEntry:
    given = {name: value for name, value in entry.items() if name != "kind"}
    if entry["kind"] == "mock":
        return MockEntry(**given)
    return LlamaCppEntry(**{"n_ctx": settings.n_ctx, "n_gpu_layers": settings.n_gpu_layers, **given})


def _entry_of_options(settings: Settings) -> BackendEntry:
    if settings.backend == "mock":
        return MockEntry(name="mock")
    entry = LlamaCppEntry(name="llamacpp", n_ctx=settings.n_ctx, n_gpu_layers=settings.n_gpu_layers)
    return _with_model(entry, settings)


def _with_model(entry: LlamaCppEntry, settings: Settings) -> LlamaCppEntry:
    if settings.model_path is not None:
        return dataclasses.replace(
            entry, model=None, model_path=settings.model_path, model_sha256=settings.model_sha256
        )
    spec = ModelSpec(name=settings.model, sha256=settings.model_sha256)
    return dataclasses.replace(entry, model=spec, model_path=None, model_sha256=None)


def _overlay(entry: LlamaCppEntry, settings: Settings, explicit: Mapping[str, _Given]) -> LlamaCppEntry:
    if "model" in explicit or "model_path" in explicit:
        entry = _with_model(entry, settings)
    elif settings.model_sha256 is not None and entry.model is not None:
        spec = ModelSpec(name=entry.model.name, sha256=settings.model_sha256)
        entry = dataclasses.replace(entry, model=spec)
    elif settings.model_sha256 is not None:
        entry = dataclasses.replace(entry, model_sha256=settings.model_sha256)
    numbers = {name: given.value for name, given in explicit.items() if name in ("n_ctx", "n_gpu_layers")}
    return dataclasses.replace(entry, **numbers)
