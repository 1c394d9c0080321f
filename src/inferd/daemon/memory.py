"""The memory budget of the models on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from inferd.store.gguf import ModelCard

CONTEXTS = (16384, 8192, 4096, 2048)
"""The default context sizes: the largest that fits is used."""

SHARE = 0.8
"""The share of the available memory that models may take; the rest is for everything else."""

_CGROUP = Path("/sys/fs/cgroup")


def budget_bytes(used: int, asked: int = 0) -> int:
    """The bytes that all models together may take: ``asked``, or a share of the memory that is available or
    already ``used`` by models. 0 if unknown."""
    if asked:
        return asked
    available = available_bytes()
    return int(SHARE * (available + used)) if available else 0


def context_sizes(card: ModelCard, n_ctx: int | None, permits: int) -> Sequence[tuple[int, int]]:
    """The possible context sizes of a model, largest first, with the bytes that each takes. An ``n_ctx`` of
    ``None`` allows all of ``CONTEXTS``; 0 is the model's training context."""
    wanted = CONTEXTS if n_ctx is None else (n_ctx or card.context,)
    contexts = dict.fromkeys(min(n, card.context or n) for n in wanted)
    return [(n, card.memory_bytes(n, 1 if card.pooling or card.ranks else max(1, permits))) for n in contexts]


def part_here(card: ModelCard, workers: int, layers: int = -1) -> ModelCard:
    """The card of the part of a model that stays on this host.

    The RPC ``workers`` compute ``layers`` of the model together; with -1, each worker and this host get an
    equal share.
    """
    if not workers or not card.layers:
        return card
    share = 1 - min(1.0, worker_layers(card, workers, layers) / card.layers)
    return replace(
        card, file_bytes=int(card.file_bytes * share), kv_bytes_per_token=int(card.kv_bytes_per_token * share)
    )


def worker_layers(card: ModelCard, workers: int, layers: int = -1) -> int:
    """The layers of a model that its ``workers`` compute: ``layers``, or an equal share each."""
    return layers if layers >= 0 else card.layers * workers // (workers + 1)


def available_bytes() -> int:
    """The bytes available without swapping, within the limit of the control group; 0 if unknown."""
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
    """The bytes that the control group of this process may still take; 0 without a limit."""
    try:
        path = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
        group = _CGROUP / path
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return 0
        return max(1, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return 0
