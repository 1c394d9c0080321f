"""The memory budget of the models on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from inferd.store.gguf import ModelCard

CONTEXTS = (16384, 8192, 4096, 2048)
"""The context sizes to choose from by default. The largest size that fits in memory is used."""

SHARE = 0.8
"""The share of the available memory that models may take. The rest is left to other programs."""

_CGROUP = Path("/sys/fs/cgroup")


def budget_bytes(private: int, asked: int = 0) -> int:
    """Returns how many bytes all models together may take, or 0 if unknown.

    If ``asked`` is not 0, returns ``asked``. Otherwise, returns ``SHARE`` of the memory that would be
    available without the loaded models. ``private`` is the memory of these models that no file backs. The
    mapped files of these models need not be added, since the kernel already counts them as available.
    """
    if asked:
        return asked
    available = available_bytes()
    return int(SHARE * (available + private)) if available else 0


def context_sizes(card: ModelCard, n_ctx: int | None, permits: int) -> Sequence[tuple[int, int]]:
    """Returns the possible context sizes, the largest first, each with the bytes that the model then takes.

    If ``n_ctx`` is ``None``, the sizes are ``CONTEXTS``. Otherwise, ``n_ctx`` is the only size, and 0 means
    the model's training context. No size exceeds the training context.
    """
    wanted = CONTEXTS if n_ctx is None else (n_ctx or card.context,)
    contexts = dict.fromkeys(min(n, card.context or n) for n in wanted)
    return [(n, card.memory_bytes(n, 1 if card.pooling or card.ranks else max(1, permits))) for n in contexts]


def part_here(card: ModelCard, workers: int, layers: int = -1) -> ModelCard:
    """Returns a model card for only the part of a model that this host holds, beside a number of RPC
    ``workers``. For ``layers``, see :func:`worker_layers`."""
    if not workers or not card.layers:
        return card
    share = 1 - min(1.0, worker_layers(card, workers, layers) / card.layers)
    return replace(
        card, file_bytes=int(card.file_bytes * share), kv_bytes_per_token=int(card.kv_bytes_per_token * share)
    )


def worker_layers(card: ModelCard, workers: int, layers: int = -1) -> int:
    """Returns how many layers of a model all RPC workers together hold. If ``layers`` is not -1, returns
    ``layers``. If it is -1, this host and each of the ``workers`` hold an equal share."""
    return layers if layers >= 0 else card.layers * workers // (workers + 1)


def available_bytes() -> int:
    """Returns the bytes of memory that are available without swapping and within the cgroup's limit, or 0 if
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
    """Returns how many more bytes the cgroup of this process may take, or 0 if the limit is unknown or does
    not exist. Cached files count as free memory, since the kernel drops them when it needs the memory."""
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
