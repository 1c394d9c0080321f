"""Tells whether this machine runs on its battery.

``supplies`` opens the kernel's files about the batteries before an engine enters its sandbox, which forbids
opening files. Later the open files are read again. On a system without such files, ``on_battery`` returns
false.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

_SUPPLIES = Path("/sys/class/power_supply")


class Supplies:
    """The batteries of the machine, except those of devices such as a mouse or a headset."""

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
    """Returns the batteries of this machine. Their status files stay open for the life of the process."""
    return Supplies()
