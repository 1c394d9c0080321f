"""The data types for options: an option, an option's value with the value's origin, and a parsed config
file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from inferd.config.kinds import Kind, SecretText
from inferd.errors import ConfigError


class Option(NamedTuple):
    """One row of the option table.

    ``flag`` is ``None`` if the option has no flag, ``env`` if it has no environment variable, and ``key`` if
    it has no key in the config file. ``reload`` says whether a reload of the configuration can change the
    value in a running daemon.
    """

    name: str
    kind: Kind
    default: object
    doc: str
    group: str
    flag: str | None
    env: str | None
    key: str | None
    default_doc: str
    reload: bool

    @property
    def secret(self) -> bool:
        return isinstance(self.kind, SecretText)

    def default_for(self, env: Mapping[str, str] | None) -> object:
        """Returns the default of the option. The default of a path depends on the environment ``env``."""
        return self.default(env) if callable(self.default) else self.default


def option(
    group: str,
    kind: Kind,
    default: object,
    doc: str,
    *,
    flag: bool = True,
    env: str | None = "",
    key: str | None = None,
    default_doc: str = "",
    reload: bool = False,
) -> Any:
    """Declares an option as an attribute of :class:`inferd.config.settings.Settings`.

    Later, :func:`named` adds the option's name, and derives the flag and the environment variable from this
    name. With ``flag=False``, the option has no flag. With ``env=None``, the option has no variable.
    """
    return Option(
        name="",
        kind=kind,
        default=default,
        doc=doc,
        group=group,
        flag="" if flag else None,
        env=env,
        key=key,
        default_doc=default_doc,
        reload=reload,
    )


def named(row: Option, name: str) -> Option:
    """Returns a copy of ``row``, the result of :func:`option`, in which three fields are set: ``name``, and
    the flag and the environment variable that are derived from ``name``."""
    upper = name.upper()
    flag = None if row.flag is None else "--" + name.replace("_", "-")
    return row._replace(name=name, flag=flag, env=f"INFERD_{upper}" if row.env == "" else row.env)


class OptionValue(NamedTuple):
    """An option's value. ``origin`` names the flag, the variable or the config key that sets the value."""

    value: Any
    origin: str
    place: Literal["flag", "env", "file"]


class ConfigFile(NamedTuple):
    """A parsed config file. ``values`` maps the name of an option to the option's key and value.
    ``backends`` has the fields of each config entry, in the order of the file."""

    values: Mapping[str, tuple[str, Any]] = MappingProxyType({})
    backends: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


def variable(name: str, kind: Kind, text: str) -> Any:
    """Parses ``text``, the content of the environment variable ``name``. Raises ConfigError if ``text`` is
    invalid."""
    try:
        return kind.parse(text)
    except ValueError as reason:
        shown = "" if isinstance(kind, SecretText) else f", not {text!r}"
        raise ConfigError(f"{name} must be {reason}{shown}") from None
