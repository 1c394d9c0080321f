"""How much memory models may take on this machine."""

from __future__ import annotations

from pathlib import Path

SHARE = 0.8
"""Of what is available, that much may be taken by models; the rest is for everything else."""

_CGROUP = Path("/sys/fs/cgroup")


def budget_bytes(used: int, asked: int = 0) -> int:
    """What all models together may take: ``asked``, or a share of what is available beside the ``used``
    bytes that they hold. 0 where the system does not tell."""
    if asked:
        return asked
    available = available_bytes()
    return int(SHARE * (available + used)) if available else 0


def available_bytes() -> int:
    """Memory that can be had without swapping, also within the limit of the control group; 0 is unknown."""
    system = _meminfo()
    group = _group_room()
    return min(system, group) if system and group else system or group


def _meminfo() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _group_room() -> int:
    """What the control group of this process may still take; 0 without a limit."""
    try:
        path = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
        group = _CGROUP / path
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return 0
        return max(1, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return 0
