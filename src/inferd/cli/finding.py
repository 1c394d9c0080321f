"""A line of the report of ``inferd doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``advice`` is the remedy; empty if the check passed."""

    name: str
    state: State
    detail: str
    advice: str = ""


Findings = Iterator[Finding]
