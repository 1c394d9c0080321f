"""Makes the backends of the configuration, models and all."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferd.config.entries import (
    BackendEntry,
    LlamaCppEntry,
    MockEntry,
    ModelSpec,
    OpenAICompatEntry,
    surfaces_of,
)
from inferd.config.settings import Settings
from inferd.engine.backend import Backend
from inferd.engine.mock import Mock
from inferd.errors import ConfigError, ModelError
from inferd.store import fetch, verify
from inferd.store.models import ModelStore

if TYPE_CHECKING:
    from inferd.engine.llamacpp import LlamaCppConfig

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
        return OpenAICompat(entry, **_left_open(settings))
    from inferd.engine.bedrock import Bedrock

    progress("checking_local", {"path": f"(bedrock-invoke: {entry.region} / {entry.model_id})"})
    return Bedrock(entry)


def recipe(settings: Settings, entry: BackendEntry) -> tuple[object, ...]:
    """All that the backend of ``entry`` is made of: equal recipes make equal backends."""
    if isinstance(entry, LlamaCppEntry):
        return (entry, settings.force_backend, _shape(settings))
    if isinstance(entry, OpenAICompatEntry):
        return (entry, _left_open(settings))
    return (entry,)


def _left_open(settings: Settings) -> dict[str, bool]:
    """Whether a server is asked for vectors and scores whose entry does not say: where they are wanted, and
    no entry says that it makes them."""
    said = frozenset[str]().union(*map(surfaces_of, settings.backends))
    return {name: getattr(settings, name) and name not in said for name in ("embed", "rerank")}


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

    with contextlib.ExitStack() as held:
        model = held.enter_context(_open_model(settings, entry, progress, cancelled))
        projector = entry.mmproj
        if isinstance(projector, ModelSpec):
            opened = held.enter_context(_of_store(settings, projector, progress, cancelled))
            # The file that was verified, whatever lies at its path by now.
            projector = Path(f"/dev/fd/{opened.fd}") if os.name == "posix" else opened.path
        embeds = entry.embed
        if embeds is None:
            embeds = (settings.embed or settings.rerank) and _pools(model)
        config = LlamaCppConfig(
            name=entry.name,
            model=model.name,
            path=model.path,
            fd=model.fd,
            n_ctx=entry.embed_n_ctx if embeds else entry.n_ctx,
            n_gpu_layers=0 if settings.force_backend == "cpu" else entry.n_gpu_layers,
            projector=projector,
            **_shape(settings),
        )
        _check_accelerator(settings, config)
        if embeds:
            return EmbeddingModel.load(
                config, pooling=entry.embed_pooling, progress=progress, cancelled=cancelled
            )
        return LlamaCpp.load(config, progress=progress, cancelled=cancelled)


def _check_accelerator(settings: Settings, config: LlamaCppConfig) -> None:
    from inferd.engine.llamacpp import accelerator_of

    found = accelerator_of(config, 0).kind
    if settings.force_backend not in (None, found):
        raise ModelError(
            f"INFERD_FORCE_BACKEND asks for {settings.force_backend}, but this model would run on {found};"
            " install a build and a driver for it, or unset the variable"
        )


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
    return _of_store(settings, entry.model, progress, cancelled)


def _of_store(
    settings: Settings, spec: ModelSpec, progress: Progress, cancelled: threading.Event
) -> verify.OpenModel:
    return fetch.ensure_model(
        ModelStore(settings.models_home),
        spec,
        auto_pull=settings.auto_pull,
        verify=settings.verify,
        progress=progress,
        cancelled=cancelled,
    )
