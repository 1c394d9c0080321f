"""What an option is, and how a field of the option table says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferd.config.kinds import Kind, SecretText

PathRule = Callable[[Mapping[str, str] | None], Path]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One row of the table; ``flag``, ``env`` or ``key`` is ``None`` where the option has none."""

    name: str
    kind: Kind
    default: object
    doc: str
    group: str
    flag: str | None
    env: str | None
    key: str | None
    default_doc: str

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
) -> Any:
    """A field of Settings; the flag and the variable follow the field's name unless said otherwise."""
    metadata = {
        "kind": kind,
        "default": default,
        "doc": doc,
        "group": group,
        "flag": flag,
        "env": env,
        "key": key,
        "default_doc": default_doc,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
