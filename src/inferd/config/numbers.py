"""The types of options whose values are numbers. See :mod:`inferd.config.kinds`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from inferd.config.kinds import Kind


class Integer(Kind):
    """A whole number from ``minimum`` to ``maximum``."""

    def __init__(self, minimum: int, maximum: int = 2**31 - 1) -> None:
        self.minimum = minimum
        self.maximum = maximum

    @property
    def metavar(self) -> str:
        return "N"

    @property
    def description(self) -> str:
        return f"a whole number from {self.minimum} to {self.maximum}"

    @property
    def file_type(self) -> Any:
        from msgspec import Meta

        return Annotated[int, Meta(ge=self.minimum, le=self.maximum)]

    def parse(self, text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text) or not self.minimum <= int(text) <= self.maximum:
            raise ValueError(self.description)
        return int(text)


class Number(Kind):
    """A number from ``minimum`` to ``maximum``, with or without a fraction."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum = minimum
        self.maximum = maximum

    @property
    def metavar(self) -> str:
        return "N"

    @property
    def description(self) -> str:
        return f"a number from {self.minimum:g} to {self.maximum:g}"

    @property
    def file_type(self) -> Any:
        from msgspec import Meta

        return Annotated[float, Meta(ge=self.minimum, le=self.maximum)]

    def parse(self, text: str) -> float:
        if not re.fullmatch(r"[+-]?[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise ValueError(self.description)
        value = float(text)
        if not self.minimum <= value <= self.maximum:
            raise ValueError(self.description)
        return value


class Seconds(Kind):
    """A duration in seconds. If ``positive``, the duration must not be zero."""

    def __init__(self, positive: bool = False, maximum: float = 86400.0 * 365) -> None:
        self.positive = positive
        self.maximum = maximum

    @property
    def metavar(self) -> str:
        return "SECONDS"

    @property
    def description(self) -> str:
        return f"a number of seconds {'above 0' if self.positive else 'of 0 or more'}, at most a year"

    @property
    def file_type(self) -> Any:
        from msgspec import Meta

        if self.positive:
            return Annotated[float, Meta(gt=0, le=self.maximum)]
        return Annotated[float, Meta(ge=0, le=self.maximum)]

    def parse(self, text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise ValueError(self.description)
        value = float(text)
        if value > self.maximum or (self.positive and value == 0):
            raise ValueError(self.description)
        return value
