"""The result of one check of ``inferd doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``advice`` is the remedy, and is empty if the check passed."""

    name: str
    state: State
    detail: str
    advice: str = ""


Findings = Iterator[Finding]
