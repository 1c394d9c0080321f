"""Makes the backends whose models are on this machine: the file from the store, verified, into an engine."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.engine.backend import Backend
from inferd.engine.local import _llama
from inferd.engine.local.embedding import EmbeddingModel
from inferd.engine.local.llamacpp import LlamaCpp, LlamaCppConfig, accelerator_of
from inferd.errors import ConfigError, ModelError
from inferd.progress import Progress
from inferd.store import fetch, verify
from inferd.store.models import ModelStore


def load(
    settings: Settings,
    entry: LlamaCppEntry,
    options: Mapping[str, Any],
    progress: Progress,
    cancelled: threading.Event,
) -> Backend:
    """The backend of ``entry``; ``options`` are the :class:`LlamaCppConfig` fields common to all models."""
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
            **options,
        )
        _check_accelerator(settings, config)
        if embeds:
            return EmbeddingModel.load(
                config, pooling=entry.embed_pooling, progress=progress, cancelled=cancelled
            )
        return LlamaCpp.load(config, progress=progress, cancelled=cancelled)


def _check_accelerator(settings: Settings, config: LlamaCppConfig) -> None:
    found = accelerator_of(config, 0).kind
    if settings.force_backend not in (None, found):
        raise ModelError(
            f"INFERD_FORCE_BACKEND asks for {settings.force_backend}, but this model would run on {found};"
            " install a build and a driver for it, or unset the variable"
        )


def _pools(model: verify.OpenModel) -> bool:
    """Whether the file says how to make one vector of many, as only models do that are made for it."""
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
