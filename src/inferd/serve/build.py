"""Makes the backends of the configuration, models and all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from inferd.config.entries import BackendEntry, BedrockEntry, LlamaCppEntry, MockEntry, OpenAICompatEntry
from inferd.config.settings import Settings
from inferd.engine.backend import Backend
from inferd.engine.mock import Mock
from inferd.errors import ConfigError
from inferd.store import fetch, verify
from inferd.store.models import ModelStore

Progress = Callable[[str, Mapping[str, object]], None]


def build_backend(
    settings: Settings, entry: BackendEntry, progress: Progress, cancelled: threading.Event
) -> Backend:
    """Makes the backend of ``entry``, model and all; blocks, and ends with BootCancelled soon after
    ``cancelled`` is set."""
    if isinstance(entry, MockEntry):
        progress("checking_local", {"path": "(mock)"})
        return Mock(entry.name)
    if isinstance(entry, LlamaCppEntry):
        return _load_model(settings, entry, progress, cancelled)
    if isinstance(entry, OpenAICompatEntry):
        from inferd.engine.openai_compat import OpenAICompat

        progress("checking_local", {"path": f"(openai-compat: {entry.base_url} / {entry.model})"})
        return OpenAICompat(entry, embed=settings.embed, rerank=settings.rerank)
    if isinstance(entry, BedrockEntry):
        from inferd.engine.bedrock import Bedrock

        return Bedrock(entry)
    raise ConfigError(f"this version of inferd cannot serve backends of the kind {entry.kind!r}")


def recipe(settings: Settings, entry: BackendEntry) -> tuple[object, ...]:
    """All that the backend of ``entry`` is made of: equal recipes make equal backends."""
    return (entry, _shape(settings)) if isinstance(entry, LlamaCppEntry) else (entry,)


def _shape(settings: Settings) -> dict[str, Any]:
    """What the settings say of every model's engine."""
    return {
        "n_parallel": max(1, settings.active_permits),
        "require_gpu": settings.require_gpu,
        "threads": settings.threads,
        "n_batch": settings.n_batch,
        "flash_attention": settings.flash_attention,
        "kv_cache_type": settings.kv_cache_type,
        "kv_unified": settings.kv_unified,
    }


def _load_model(
    settings: Settings, entry: LlamaCppEntry, progress: Progress, cancelled: threading.Event
) -> Backend:
    # Only a daemon with a model of its own pays for loading the engine.
    from inferd.engine.embedding import EmbeddingModel
    from inferd.engine.llamacpp import LlamaCpp, LlamaCppConfig

    with _open_model(settings, entry, progress, cancelled) as model:
        embeds = entry.embed
        if embeds is None:
            embeds = (settings.embed or settings.rerank) and _pools(model)
        config = LlamaCppConfig(
            name=entry.name,
            model=model.name,
            path=model.path,
            fd=model.fd,
            n_ctx=entry.embed_n_ctx if embeds else entry.n_ctx,
            n_gpu_layers=entry.n_gpu_layers,
            projector=entry.mmproj,
            **_shape(settings),
        )
        if embeds:
            return EmbeddingModel.load(
                config, pooling=entry.embed_pooling, progress=progress, cancelled=cancelled
            )
        return LlamaCpp.load(config, progress=progress, cancelled=cancelled)


def _pools(model: verify.OpenModel) -> bool:
    """Whether the file says how to make one vector of many, as only models do that are made for it."""
    from inferd.engine import _llama

    return _llama.file_pooling(model.fd) not in ("unspecified", "none")


def _open_model(
    settings: Settings, entry: LlamaCppEntry, progress: Progress, cancelled: threading.Event
) -> verify.OpenModel:
    if entry.model is None:
        if entry.model_path is None:
            raise ConfigError(f"backend {entry.name!r} names no model; give it a model or a model_path")
        return verify.open_file(entry.model_path, entry.model_sha256, progress=progress, cancelled=cancelled)
    return fetch.ensure_model(
        ModelStore(settings.models_home),
        entry.model,
        auto_pull=settings.auto_pull,
        verify=settings.verify,
        progress=progress,
        cancelled=cancelled,
    )
