"""An option, its declaration as a field of the option table, and its value with its origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inferd.config.kinds import Kind, SecretText
from inferd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Option:
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

    def default_for(self, env: Mapping[str, str]) -> object:
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
    """A field of Settings; by default the flag and the variable are derived from the field's name."""
    metadata = {
        "kind": kind,
        "default": default,
        "doc": doc,
        "group": group,
        "flag": flag,
        "env": env,
        "key": key,
        "default_doc": default_doc,
        "reload": reload,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class OptionValue:
    """The value of an option, with the flag, variable or key as its origin."""

    value: Any
    origin: str
    place: Literal["flag", "env", "file"]


def variable(name: str, kind: Kind, text: str) -> Any:
    """Parses ``text``, the content of the environment variable ``name``; ConfigError if it is invalid."""
    try:
        return kind.parse(text)
    except ValueError as reason:
        shown = "" if isinstance(kind, SecretText) else f", not {text!r}"
        raise ConfigError(f"{name} must be {reason}{shown}") from None
