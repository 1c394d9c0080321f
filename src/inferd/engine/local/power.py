"""Tells whether this machine runs on its battery.

The files of the kernel are opened by ``supplies``, before the sandbox of an engine forbids that, and read
again later. On a system without them the answer is no.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

_SUPPLIES = Path("/sys/class/power_supply")


class Supplies:
    """The batteries of the machine. Those of a mouse or a headset do not count."""

    def __init__(self, place: Path = _SUPPLIES) -> None:
        self._status: list[int] = []
        for battery in sorted(place.glob("*/status")):
            with suppress(OSError):
                scope = battery.with_name("scope")
                if scope.exists() and scope.read_text().strip() == "Device":
                    continue
                self._status.append(os.open(battery, os.O_RDONLY | os.O_CLOEXEC))

    def close(self) -> None:
        while self._status:
            os.close(self._status.pop())

    def on_battery(self) -> bool:
        for fd in self._status:
            with suppress(OSError):
                if os.pread(fd, 32, 0).strip() == b"Discharging":
                    return True
        return False


@cache
def supplies() -> Supplies:
    """The batteries of this machine. Their files stay open for the life of the process."""
    return Supplies()
