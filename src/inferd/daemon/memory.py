"""The memory budgets of the models on this machine: for its RAM, and for each of its GPUs.

In a dictionary of bytes by place, the key for RAM is :data:`RAM`, and the key for a GPU is the GPU's name,
which is not empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from inferd.config.entries import LlamaCppEntry
from inferd.config.settings import Settings
from inferd.engine.backend import Backend, EngineState, GpuRoom, Need, Needs
from inferd.errors import ModelTooLarge

if TYPE_CHECKING:
    from inferd.store.gguf import ModelCard

RAM = ""

CONTEXTS = (16384, 8192, 4096, 2048)
"""The context sizes to choose from by default. The largest size that fits in memory is used."""

SHARE = 0.8
"""The share of the available memory that models may take. The rest is left to other programs."""

_CGROUP = Path("/sys/fs/cgroup")


def budget_bytes(private: int, asked: int = 0) -> int:
    """Returns how many bytes all models together may take, or 0 if unknown.

    If ``asked`` is not 0, returns ``asked``. Otherwise, returns ``SHARE`` of the memory that would be
    available without the loaded models. ``private`` is the part of the loaded models' memory that is not
    backed by a file. The models' mapped files need not be added, since the kernel already counts them as
    available.
    """
    if asked:
        return asked
    available = available_bytes()
    return int(SHARE * (available + private)) if available else 0


def taken_by(backend: Backend) -> Counter[str]:
    """Returns the bytes that a backend takes in each place. A backend without a model takes none."""
    state = backend.engine_state()
    return Counter() if state is None else taken(state)


def taken(state: EngineState) -> Counter[str]:
    return Counter({RAM: state.taken_bytes, **state.gpu_bytes})


def places(need: Need) -> Counter[str]:
    return Counter({RAM: need.here, **need.gpus})


def takes(backend: Backend, places: Collection[str]) -> bool:
    """Whether the backend takes memory in one of the ``places``."""
    taken = taken_by(backend)
    return any(taken[place] for place in places)


def whole_sizes(needs: Needs) -> list[Need]:
    """Returns the needs of a model, each with the memory of the model's process added."""
    from inferd.store.gguf import PROCESS_BYTES

    return [size._replace(here=size.here + PROCESS_BYTES) for size in needs.sizes]


def budgets(settings: Settings, private: int, gpus: Mapping[str, int]) -> dict[str, int]:
    """Returns the budgets by place: that of RAM, unless it is unknown, and those of the ``gpus``."""
    ram = budget_bytes(private, settings.memory_budget_bytes)
    return {RAM: ram, **gpus} if ram else {**gpus}


def gpu_budgets(
    settings: Settings, needs: Needs, held: Mapping[str, int], share: float = SHARE
) -> dict[str, int]:
    """Returns how many bytes all models together may take on each GPU. The most is the sum of the free bytes
    and the bytes that are ``held`` by loaded models, but not more than the GPU has: not every driver counts
    the bytes of loaded models as used. The budget is the number in the settings, up to this sum, or else
    ``share`` of this sum."""
    most = {gpu: min(size + held.get(gpu, 0), needs.all.get(gpu, size)) for gpu, size in needs.free.items()}
    asked = settings.gpu_memory_budget_bytes
    return {gpu: min(asked, size) if asked else int(share * size) for gpu, size in most.items()}


def short(need: Need, used: Counter[str], budgets: Mapping[str, int]) -> list[str]:
    """Returns the places that have no room for ``need`` beside the ``used`` bytes."""
    return [
        place
        for place, size in places(need).items()
        if size and place in budgets and used[place] + size > budgets[place]
    ]


def fitting(sizes: Sequence[Need], used: Counter[str], budgets: Mapping[str, int]) -> Need | None:
    """Returns the first size that fits in all places."""
    return next((need for need in sizes if not short(need, used, budgets)), None)


def room_for_part(
    need: Need, staying: Counter[str], most: Mapping[str, int], usual: Mapping[str, int]
) -> GpuRoom | None:
    """Returns the room for a part of a model on the GPUs, or ``None`` for the whole model.

    The whole model is taken if it fits into the budgets ``most`` beside the ``staying`` bytes, or if its
    number of layers is set. The part must fit into the budgets ``usual``."""
    if need.layers >= 0 or not short(need, staying, most):
        return None
    return GpuRoom({gpu: max(0, size - staying[gpu]) for gpu, size in usual.items()})


def too_large(
    name: str, need: Need, used: Counter[str], budgets: Mapping[str, int], place: str
) -> ModelTooLarge:
    """Returns the error for a model that does not fit in ``place``."""
    where, there, option, remedy = "", "", "memory_budget_bytes", "serve fewer requests at once"
    if place != RAM:
        where, there, option = f" on {place}", " there", "gpu_memory_budget_bytes"
        remedy = "lower its n_ctx or n_gpu_layers, take a smaller model"
    return ModelTooLarge(
        f"the model {name!r} needs about {places(need)[place] >> 20} MiB{where} and the budget for all models"
        f"{there} is {budgets[place] >> 20} MiB, of which {used[place] >> 20} MiB are in use; {remedy}, or"
        f" raise limits.{option}"
    )


def may_use_gpu(settings: Settings, entry: LlamaCppEntry) -> bool:
    """Whether the model would take GPU memory if the machine had a GPU. ``False`` for a model with RPC
    workers: llama.cpp divides the model over the workers, and how it does so is known only when the model is
    loaded."""
    return entry.n_gpu_layers != 0 and not entry.rpc and settings.force_backend != "cpu"


def context_sizes(card: ModelCard, n_ctx: int | None, permits: int) -> Sequence[tuple[int, int]]:
    """Returns the possible context sizes, the largest first, each with the bytes that the model then takes.

    If ``n_ctx`` is ``None``, the sizes are ``CONTEXTS``. Otherwise, ``n_ctx`` is the only size, and 0 means
    the model's training context. No size exceeds the training context.
    """
    wanted = CONTEXTS if n_ctx is None else (n_ctx or card.context,)
    contexts = dict.fromkeys(min(n, card.context or n) for n in wanted)
    return [(n, card.memory_bytes(n, 1 if card.pooling or card.ranks else max(1, permits))) for n in contexts]


def entry_sizes(settings: Settings, entry: LlamaCppEntry, card: ModelCard) -> Sequence[tuple[int, int]]:
    """Returns :func:`context_sizes` of a config entry. The bytes are those on this host, without the
    parts that RPC workers hold."""
    held = part_here(card, len(entry.rpc), entry.n_gpu_layers)
    return context_sizes(held, entry.n_ctx, settings.active_permits)


def part_here(card: ModelCard, workers: int, layers: int = -1) -> ModelCard:
    """Returns the model card of the part of a model that this host holds while ``workers`` RPC workers hold
    the rest. For ``layers``, see :func:`worker_layers`."""
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
