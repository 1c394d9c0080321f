"""What ``inferd doctor`` has to say: a line of its report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``advice`` says what to do unless all is well."""

    name: str
    state: State
    detail: str
    advice: str = ""


Findings = Iterator[Finding]
