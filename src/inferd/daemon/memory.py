"""The memory budget of the models on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from inferd.store.gguf import ModelCard

CONTEXTS = (16384, 8192, 4096, 2048)
"""The context sizes to choose from by default. The largest that fits in memory is used."""

SHARE = 0.8
"""The share of the available memory that models may take. The rest is left to other programs."""

_CGROUP = Path("/sys/fs/cgroup")


def budget_bytes(private: int, asked: int = 0) -> int:
    """Returns how many bytes all models together may take: ``asked``, unless ``asked`` is 0. If ``asked`` is
    0, returns ``SHARE`` of the available memory plus the ``private`` bytes of the loaded models, or 0 if the
    available memory is unknown. Their mapped files count as available already."""
    if asked:
        return asked
    available = available_bytes()
    return int(SHARE * (available + private)) if available else 0


def context_sizes(card: ModelCard, n_ctx: int | None, permits: int) -> Sequence[tuple[int, int]]:
    """Returns pairs of a possible context size and the bytes that the model then takes, the largest first.
    With an ``n_ctx`` of ``None`` the sizes are ``CONTEXTS``, and otherwise ``n_ctx`` is the only size; 0
    means the model's training context. No size exceeds the training context."""
    wanted = CONTEXTS if n_ctx is None else (n_ctx or card.context,)
    contexts = dict.fromkeys(min(n, card.context or n) for n in wanted)
    return [(n, card.memory_bytes(n, 1 if card.pooling or card.ranks else max(1, permits))) for n in contexts]


def part_here(card: ModelCard, workers: int, layers: int = -1) -> ModelCard:
    """Returns a card of the part of a model that this host holds.

    The RPC ``workers`` together hold ``layers`` of the model's layers. With -1, this host and each worker
    hold an equal share.
    """
    if not workers or not card.layers:
        return card
    share = 1 - min(1.0, worker_layers(card, workers, layers) / card.layers)
    return replace(
        card, file_bytes=int(card.file_bytes * share), kv_bytes_per_token=int(card.kv_bytes_per_token * share)
    )


def worker_layers(card: ModelCard, workers: int, layers: int = -1) -> int:
    """Returns how many layers the ``workers`` hold together: ``layers``, or with -1 an equal share for each
    worker and this host."""
    return layers if layers >= 0 else card.layers * workers // (workers + 1)


def available_bytes() -> int:
    """Returns the bytes that are available without swapping and within the limit of the cgroup, or 0 if
    unknown."""
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
    """Returns the bytes that the cgroup of this process may still take, or 0 if the cgroup has no limit. The
    kernel takes cached files back when it needs their memory."""
    try:
        path = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
        group = _CGROUP / path
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return 0
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(stat["file"]) - int(stat["shmem"])
        return max(1, int(limit) - int((group / "memory.current").read_text()) + cached)
    except (OSError, ValueError, KeyError):
        return 0
