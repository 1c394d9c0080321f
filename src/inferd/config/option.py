"""An option, its declaration as a row of the option table, its value with its origin, and a file of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from inferd.config.kinds import Kind, SecretText
from inferd.errors import ConfigError


class Option(NamedTuple):
    """One row of the table; ``flag``, ``env`` or ``key`` is ``None`` if the option has none.

    ``reload``: a reload can change the value in a running daemon.
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
        """The default, which for a path depends on the environment."""
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
    """A row of Settings, still without its name; by default the flag and the variable are derived from it."""
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
    """The row of :func:`option` that has this name."""
    upper = name.upper()
    flag = None if row.flag is None else "--" + name.replace("_", "-")
    return row._replace(name=name, flag=flag, env=f"INFERD_{upper}" if row.env == "" else row.env)


class OptionValue(NamedTuple):
    """The value of an option, with the flag, variable or key as its origin."""

    value: Any
    origin: str
    place: Literal["flag", "env", "file"]


class ConfigFile(NamedTuple):
    """A parsed file: option name → (key, value), the backends' fields in order, and warnings."""

    values: Mapping[str, tuple[str, Any]] = MappingProxyType({})
    backends: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


def variable(name: str, kind: Kind, text: str) -> Any:
    """Parses ``text``, the content of the environment variable ``name``; ConfigError if it is invalid."""
    try:
        return kind.parse(text)
    except ValueError as reason:
        shown = "" if isinstance(kind, SecretText) else f", not {text!r}"
        raise ConfigError(f"{name} must be {reason}{shown}") from None
