"""Builds backends from their config entries."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from inferd.config.entries import (
    MAX_REQUESTS,
    BackendEntry,
    BedrockEntry,
    InferdEntry,
    LlamaCppEntry,
    MockEntry,
    OpenAICompatEntry,
    surfaces_of,
)
from inferd.config.settings import Settings
from inferd.engine.backend import Backend
from inferd.progress import Progress
from inferd.serve.pool import Route

if TYPE_CHECKING:
    from inferd.engine.local.child.spawned import Spawned

# The limit of llama.cpp for one context.
MAX_SEQUENCES = 256


def build_backend(
    settings: Settings,
    entry: BackendEntry,
    progress: Progress,
    cancelled: threading.Event,
    loading: Callable[[], AbstractContextManager[Spawned | None]] = contextlib.nullcontext,
) -> Backend:
    """Builds the backend of the config entry ``entry``. Blocks while the files of a local model are
    downloaded and verified. The backend's ``start`` method loads the model.

    Raises BootCancelled soon after ``cancelled`` is set. Imports only the modules for the kind of ``entry``.
    """
    if isinstance(entry, MockEntry):
        from inferd.engine.mock import Mock

        progress("checking_local", {"path": "(mock)"})
        return Mock(entry.name)
    if isinstance(entry, LlamaCppEntry):
        from inferd.daemon.local import load

        return load(settings, entry, _engine_options(settings), progress, cancelled, loading)
    if isinstance(entry, OpenAICompatEntry):
        from inferd.engine.remote.openai import OpenAICompat

        progress("checking_local", {"path": f"(openai-compat: {entry.base_url} / {entry.model})"})
        return OpenAICompat(entry, **_left_open(settings))
    if isinstance(entry, InferdEntry):
        from inferd.engine.remote.inferd import Inferd

        progress("checking_local", {"path": f"(inferd: {entry.address or entry.name})"})
        return Inferd(entry)
    from inferd.engine.remote.bedrock import Bedrock

    progress("checking_local", {"path": f"(bedrock-invoke: {entry.region} / {entry.model_id})"})
    return Bedrock(entry)


def build_key(settings: Settings, entry: BackendEntry) -> tuple[object, ...]:
    """Returns all values on which the backend of the config entry ``entry`` depends. Backends with equal keys
    are interchangeable."""
    # Only the router uses ``serves`` and ``max_requests``. But for another inferd daemon without ``model``,
    # ``serves`` is also the name of the model.
    if not isinstance(entry, InferdEntry) or entry.model:
        entry = entry._replace(serves=None)
    if not isinstance(entry, MockEntry | LlamaCppEntry):
        entry = entry._replace(max_requests=MAX_REQUESTS)
    if isinstance(entry, LlamaCppEntry):
        return (
            entry,
            _stamps(entry),
            settings.force_backend,
            settings.cache_disk_mib,
            settings.engine_memory_factor,
            _engine_options(settings),
        )
    if isinstance(entry, OpenAICompatEntry):
        return (entry, _left_open(settings))
    return (entry,)


def _stamps(entry: LlamaCppEntry) -> list[tuple[int, int]]:
    """Returns a value that changes when the template file or an adapter file of a config entry changes."""
    stamps = []
    for path in (entry.chat_template_file, *(adapter.path for adapter in entry.lora)):
        with contextlib.suppress(OSError):
            if path is not None:
                found = path.stat()
                stamps.append((found.st_mtime_ns, found.st_size))
    return stamps


def route_of(entry: BackendEntry) -> Route:
    """Returns the route to the backend of the config entry ``entry``."""
    if isinstance(entry, MockEntry):
        return Route(serves=entry.serves or "")
    if isinstance(entry, LlamaCppEntry):
        serves = entry.serves or (entry.model.name if entry.model is not None else "")
        return Route(serves=serves, aliases=entry.aliases)
    model = entry.model_id if isinstance(entry, BedrockEntry) else entry.model
    return Route(serves=entry.serves or model, remote=True, limit=entry.max_requests)


def _left_open(settings: Settings) -> dict[str, bool]:
    """Returns the default values of ``embed`` and ``rerank`` for a server with the OpenAI API. A value is
    true if the daemon's option of the same name is on, and no config entry enables the surface."""
    said = frozenset[str]().union(*map(surfaces_of, settings.backends))
    return {name: getattr(settings, name) and name not in said for name in ("embed", "rerank")}


def _engine_options(settings: Settings) -> dict[str, Any]:
    """Returns the engine options that are the same for all models."""
    return {
        "n_parallel": min(max(1, settings.active_permits), MAX_SEQUENCES),
        "require_gpu": settings.require_gpu,
        "threads": settings.threads,
        "n_batch": settings.n_batch,
        "flash_attention": settings.flash_attention,
        "kv_cache_type": settings.kv_cache_type,
        "kv_unified": settings.kv_unified,
        "cache_mib": settings.cache_mib,
        "ahead_tokens": settings.ahead_tokens,
        "keep_thinking": settings.keep_thinking,
        "drafts": settings.drafts,
    }
