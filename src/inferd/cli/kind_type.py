"""Adapts the kinds of the option table to the library click. A kind parses and checks values. This module
imports no client, so that the process of ``inferd serve`` stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inferd.config.kinds import Kind

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic only in newer versions of click


class KindType(ParamType):
    """A type for click options. It parses values by means of a kind from the option table."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = kind.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.kind.parse(value)
        except ValueError as reason:
            self.fail(f"it must be {reason}", param, ctx)
