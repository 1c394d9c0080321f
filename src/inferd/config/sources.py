"""Merges flags, environment variables and the config file into Settings.

A flag has precedence over an environment variable, a variable over the config file, and the config file over
the default. If two sources set two options that exclude each other, the option from the source with the lower
precedence is ignored. If the config file or the list of backends has an error, :func:`read` returns the error
instead of raising it. The daemon raises the error after it has taken its lock and opened its admin socket, so
that clients of the admin socket get the error, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from inferd.config import backends, paths
from inferd.config.http_options import QUEUE_DEPTH
from inferd.config.kinds import FilePath, Secret, SecretText
from inferd.config.nearest import nearest
from inferd.config.option import ConfigFile, OptionValue, variable
from inferd.config.settings import EXCLUSIVE, OPTIONS, TRANSPORTS, Settings
from inferd.errors import ConfigError, UsageError

OTHER_VARIABLES = frozenset(
    {"INFERD_ADDRESS", "INFERD_CONFIG", "INFERD_IMPL", "INFERD_CPU_VARIANT", "INFERD_CLI_LOG"}
)
"""Variables with the prefix ``INFERD_`` that set no option: the address for clients, the path of the config
file, two switches, and one variable of inferd 0.2.1."""


MAX_LINE_BYTES_0_2 = 64 * 1024 * 1024
"""The longest request line of inferd 0.2.1."""


class LoadedConfig(NamedTuple):
    """Settings, with ``notes`` to log, and with the ``problem`` that ends the boot of a daemon, if any.

    If the problem is in the config file, the settings come from flags, variables and defaults alone.
    ``serving`` is true if the problem, such as a missing secret, matters only for a daemon. Then the settings
    have no backends and perhaps no API key, but are good enough for a client. For each option that is set,
    ``origins`` has the flag, the variable, or the key in the config file at ``path``.
    """

    settings: Settings
    path: Path
    notes: tuple[str, ...] = ()
    problem: ConfigError | None = None
    serving: bool = False
    origins: Mapping[str, str] = MappingProxyType({})


def read(
    flags: Mapping[str, object], env: Mapping[str, str] | None = None, *, as_0_2: bool = False
) -> LoadedConfig:
    """Reads flags, environment variables and the config file.

    ``flags`` maps option names to parsed values. Its key ``config`` has the path of the config file. A value
    of ``None`` means that the flag was not given. ``as_0_2`` is for users of inferd 0.2.1, and changes two
    things. If the named config file does not exist, the result has a note instead of a problem. The default
    limit of a request line is 64 MiB, since the clients of 0.2.1 cannot send a long prompt in another way.
    Raises UsageError for flags that exclude each other, and ConfigError for an invalid variable or an
    unreadable API key file.
    """
    env = os.environ if env is None else env
    unusable: list[str] = []
    levels = [_from_flags(flags), _from_env(env, unusable)]
    for level, error in zip(levels, (UsageError, ConfigError), strict=True):
        _check_exclusive(level, error)
    notes = [*_exposed(levels[0]), *_misspelt(env), *unusable]
    path, named = config_path(flags, env)
    if as_0_2 and named and not path.exists():
        notes.append(f"config file {path}: there is no such file; the daemon serves without it")
        named = False
    listed: Sequence[Mapping[str, Any]] = ()
    problem = None
    try:
        found = _file(path, required=named)
        values = {name: OptionValue(value, f"`{key}`", "file") for name, (key, value) in found.values.items()}
        _check_exclusive(values, ConfigError, f"config file {path}: ")
        levels.append(values)
        notes.extend(found.warnings)
        listed = found.backends
    except ConfigError as of_file:
        problem = of_file
    chosen = _choose(levels, notes)
    settings = _settings(chosen, env)
    if as_0_2 and "max_frame_bytes" not in chosen:
        settings = settings.replaced(max_frame_bytes=MAX_LINE_BYTES_0_2)
    serving = False
    try:
        settings = settings.replaced(api_key=_api_key(settings, env))
        entries = backends.entries(settings, chosen, listed, env, notes)
        settings = settings.replaced(backends=entries)
    except ConfigError as lack:
        serving = problem is None
        problem = problem or lack
    return LoadedConfig(settings, path, tuple(notes), problem, serving, _origins(chosen))


def _file(path: Path, *, required: bool) -> ConfigFile:
    try:
        path.stat()
    except FileNotFoundError:
        if not required:
            return ConfigFile()
    except OSError:
        pass  # read_file raises an error with the reason
    from inferd.config.file import read_file  # imported only if a file exists, since msgspec takes time

    return read_file(path)


def load(
    flags: Mapping[str, object], env: Mapping[str, str] | None = None, *, serving: bool = True
) -> tuple[Settings, list[str]]:
    """Calls :func:`read`. Returns the settings and the notes, or raises the ``problem``.

    If ``serving`` is false, a problem that matters only for a daemon is not raised.
    """
    result = read(flags, env)
    if result.problem is not None and (serving or not result.serving):
        raise result.problem
    return result.settings, list(result.notes)


def _from_flags(flags: Mapping[str, object]) -> dict[str, OptionValue]:
    return {
        option.name: OptionValue(flags[option.name], option.flag, "flag")
        for option in OPTIONS
        if option.flag is not None and flags.get(option.name) is not None
    }


def _from_env(env: Mapping[str, str], unusable: list[str]) -> dict[str, OptionValue]:
    level: dict[str, OptionValue] = {}
    for option in OPTIONS:
        text = env.get(option.env, "") if option.env is not None else ""
        if text and option.env is not None:
            try:
                value = variable(option.env, option.kind, text)
            except ConfigError as error:
                if not option.kind.ignores_unusable_variables:
                    raise
                unusable.append(f"{error}; it is ignored")
                continue
            level[option.name] = OptionValue(value, option.env, "env")
    return level


def _exposed(flags: Mapping[str, OptionValue]) -> Iterator[str]:
    for option in OPTIONS:
        if option.secret and option.name in flags and flags[option.name].value.reveal():
            instead = "INFERD_API_KEY or --api-key-file" if option.name == "api_key" else option.env
            yield (
                f"{option.flag} shows the key to every user of this machine in the process list;"
                f" prefer {instead}"
            )


def _misspelt(env: Mapping[str, str]) -> Iterator[str]:
    known = {option.env for option in OPTIONS if option.env is not None} | OTHER_VARIABLES
    leaves = {name.removeprefix("INFERD_"): name for name in known}
    for name in env:
        if name.startswith("INFERD_") and name not in known:
            near = nearest(name.removeprefix("INFERD_"), leaves)
            hint = "" if near is None else f"; the nearest known one is {leaves[near]}"
            yield f"unknown variable {name} is ignored{hint}"


def _check_exclusive(level: Mapping[str, OptionValue], error: type[ConfigError], where: str = "") -> None:
    for group in EXCLUSIVE:
        both = [level[name].origin for name in group if name in level]
        if len(both) > 1:
            raise error(f"{where}{both[0]} and {both[1]} exclude each other; give one of them")


def config_path(flags: Mapping[str, object], env: Mapping[str, str]) -> tuple[Path, bool]:
    """Returns the path of the config file, and whether a flag or a variable names it. A named config file
    must exist."""
    flag = flags.get("config")
    if isinstance(flag, Path):
        return flag, True
    named = env.get("INFERD_CONFIG", "")
    if named:
        path: Path = variable("INFERD_CONFIG", FilePath(), named)
        return path, True
    return paths.config_path(env), False


def _choose(levels: list[dict[str, OptionValue]], notes: list[str]) -> dict[str, OptionValue]:
    chosen: dict[str, OptionValue] = {}
    for level in levels:
        above = dict(chosen)
        for name, given in level.items():
            rivals = [name, *(other for group in EXCLUSIVE if name in group for other in group)]
            winner = next((above[rival] for rival in rivals if rival in above), None)
            if winner is None:
                chosen[name] = given
            elif given.place == "file":
                notes.append(f"{winner.origin} overrides {given.origin} of the config file")
    return chosen


def _origins(chosen: Mapping[str, OptionValue]) -> dict[str, str]:
    origins = {
        name: f"config {given.origin}" if given.place == "file" else given.origin
        for name, given in chosen.items()
    }
    key = next(
        (origins[name] for name in ("api_key", "api_key_file", "api_key_env") if name in origins), None
    )
    return origins if key is None else {**origins, "api_key": key}


def _settings(chosen: Mapping[str, OptionValue], env: Mapping[str, str]) -> Settings:
    """Returns the settings without the backends, and without the API key in the variable ``api_key_env``."""
    values: dict[str, Any] = {option.name: option.default_for(env) for option in OPTIONS}
    values.update({name: given.value for name, given in chosen.items()})
    for tcp, *_, local in TRANSPORTS:
        if values[tcp] is not None:
            values[local] = None
    values["implicit_surfaces"] = implicit = _implicit_surfaces(chosen)
    if "uds" in chosen:
        # In the directory of the given socket, since another daemon may serve at the default path.
        for name in implicit:
            values[f"{name}_addr"] = values["uds"].parent / paths.socket_path(name, env).name
    if values["http"] is not None and "queue_depth" not in chosen:
        values["queue_depth"] = QUEUE_DEPTH
    if values["api_key_file"] is not None:
        values["api_key"] = _read_key(values["api_key_file"])
    return Settings(**values)


def _implicit_surfaces(chosen: Mapping[str, OptionValue]) -> frozenset[Literal["v2", "framed"]]:
    """Returns the surfaces that only the defaults turn on, because no option for these surfaces is set."""
    asked = {"v2": ("v2", "v2_addr", "v2_tcp"), "framed": ("framed_addr",)}
    return frozenset(name for name in ("v2", "framed") if not any(option in chosen for option in asked[name]))


def _api_key(settings: Settings, env: Mapping[str, str]) -> Secret | None:
    """Returns the API key for TCP clients. Raises ConfigError if ``api_key_env`` in the config file names a
    variable that is not set."""
    name = settings.api_key_env
    if name is None:
        return settings.api_key
    if not env.get(name):
        raise ConfigError(
            f"`listen.api_key_env` names {name}, which is not set; set it or remove the key from the file"
        )
    secret: Secret = variable(name, SecretText(), env[name])
    return secret


def _read_key(path: Path) -> Secret:
    try:
        with path.open(encoding="utf-8-sig") as file:
            key = file.readline(8192).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"API key file {path} cannot be read: {reason}") from None
    if not key:
        raise ConfigError(f"API key file {path} is empty; its first line must be the key")
    try:
        return SecretText().parse(key)
    except ValueError as reason:
        raise ConfigError(f"API key file {path}: its first line must be {reason}") from None
