"""Builds the backends of local models: verifies a model's files, and prepares the model's engine process."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from inferd import log
from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon import memory
from inferd.daemon.state_files import look_of, state_files
from inferd.daemon.templates import findings, key_of, read_template
from inferd.daemon.threads import in_thread
from inferd.engine.backend import Backend
from inferd.engine.local.child.descriptors import duplicates
from inferd.engine.local.child.messages import Adapter, Load, Loaded
from inferd.engine.local.child.spawned import Spawned
from inferd.engine.local.child.supervisor import HostedModel
from inferd.engine.local.rpc.workers import is_protected, parts_of
from inferd.errors import ConfigError, ModelError
from inferd.progress import Progress
from inferd.store import fetch, verify
from inferd.store.gguf import ModelCard, read_card, whole_card
from inferd.store.models import ModelStore

_log = log.get("models")


def load(
    settings: Settings,
    entry: LlamaCppEntry,
    options: Mapping[str, Any],
    progress: Progress,
    cancelled: threading.Event,
    loading: Callable[[], AbstractContextManager[Spawned | None]] = contextlib.nullcontext,
) -> Backend:
    """Returns the backend of the config entry ``entry``. The backend's ``start`` method loads the model.
    ``options`` are the fields of :class:`Load` that are the same for all models. Blocks while the model's
    files are downloaded and verified."""
    with contextlib.ExitStack() as held:
        model = held.enter_context(_open_model(settings, entry, progress, cancelled))

        def opened(source: Path | ModelSpec) -> verify.OpenModel:
            if isinstance(source, ModelSpec):
                return held.enter_context(_of_store(settings, source, progress, cancelled))
            return held.enter_context(verify.open_file(source, None, progress=progress, cancelled=cancelled))

        projector = model.projector if entry.mmproj is None else opened(entry.mmproj)
        draft = None if entry.draft is None or settings.drafts == "off" else opened(entry.draft)
        lora = [opened(adapter.path).fd for adapter in entry.lora]
        beside = [*([] if projector is None else [projector.fd]), *lora]
        card, small = _card(model), None if draft is None else _card(draft)
        if card is not None and small is not None:
            card = card.with_draft(small)
        fds = [
            *model.fds,
            *([] if projector is None else [projector.fd]),
            *([] if draft is None else [draft.fd]),
            *lora,
        ]
        template = read_template(entry.chat_template_file)
        sizes = _sizes(settings, entry, card)
        n_ctx, estimate = _fitting_context(settings, entry, sizes)
        _check_workers(entry)
        wanted = Load(
            name=entry.name,
            model=model.name,
            path=str(model.path),
            n_ctx=n_ctx,
            contexts=tuple(n for n, _ in sizes) if entry.n_ctx is None else (entry.n_ctx,),
            memory_bytes=0 if card is None else _most_memory(settings, card, n_ctx, beside),
            chat_template=template,
            n_gpu_layers=entry.n_gpu_layers,
            force_backend=settings.force_backend,
            parts=len(model.fds),
            projector=projector is not None,
            draft_model=draft is not None,
            adapters=tuple(
                Adapter(adapter.name, f"{look_of(fd)} {adapter.scale}", adapter.scale)
                for adapter, fd in zip(entry.lora, lora, strict=True)
            ),
            workers=entry.rpc,
            # One more than the layers, because llama.cpp also counts the matrix of the vocabulary, which
            # stays on this host.
            worker_layers=-1
            if card is None
            else memory.worker_layers(card, len(entry.rpc), entry.n_gpu_layers) + 1,
            embed=entry.embed,
            vectors_wanted=settings.embed or settings.rerank,
            embed_pooling=entry.embed_pooling,
            embed_n_ctx=entry.embed_n_ctx,
            log_level=log.level(),
            **options,
        )
        states = state_files(settings, entry.name, model)
        key = key_of(ModelStore(settings.models_home), model.fd, model.sha256, template)
        kept = duplicates(fds)
    return HostedModel(
        wanted,
        kept,
        progress,
        _changes(model.path, kept),
        system=entry.system,
        states=states,
        estimate_bytes=estimate or sum(os.fstat(fd).st_size for fd in kept),
        on_loaded=functools.partial(_keep_finding, key),
        loading=loading,
    )


async def _keep_finding(key: str, loaded: Loaded) -> None:
    if loaded.template is not None:
        await in_thread(functools.partial(findings().add, key, loaded.template))


def _card(model: verify.OpenModel) -> ModelCard | None:
    """Returns the model card from the headers of the model's files, or ``None`` if :mod:`inferd.store.gguf`
    cannot read one of them."""
    try:
        card, *parts = [read_card(fd, model.path) for fd in model.fds]
    except ModelError:
        return None
    return whole_card(card, parts)


def _most_memory(settings: Settings, card: ModelCard, n_ctx: int, beside: Sequence[int]) -> int:
    """Returns the memory limit of a model's engine process, in bytes. The limit includes memory for the files
    ``beside`` the model's file: the projector and the adapters."""
    needed = card.memory_bytes(n_ctx or card.context, max(1, settings.active_permits), settings.n_batch)
    needed += 2 * sum(os.fstat(fd).st_size for fd in beside)
    return settings.engine_memory_factor * needed


def _sizes(settings: Settings, entry: LlamaCppEntry, card: ModelCard | None) -> Sequence[tuple[int, int]]:
    """Returns the context sizes to choose from, the largest first, and the memory that each takes here, 0 if
    it is unknown."""
    if card is None:
        return [(memory.CONTEXTS[0] if entry.n_ctx is None else entry.n_ctx, 0)]
    return memory.entry_sizes(settings, entry, card)


def _fitting_context(
    settings: Settings, entry: LlamaCppEntry, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Returns two numbers: the context size, and the bytes that the model then needs. The context size is the
    one that the entry sets, or else the largest that is likely to fit in memory. Logs a warning if no size is
    likely to fit."""
    budget = memory.budget_bytes(0, settings.memory_budget_bytes)
    n_ctx, size = next(((n, size) for n, size in sizes if not budget or size <= budget), sizes[-1])
    limit = settings.memory_budget_bytes or memory.available_bytes()
    if limit and size > limit:
        _log.warn(
            "the model may not fit in memory; lower n_ctx or active_permits, or take a smaller model",
            model=entry.name,
            needed_mib=size >> 20,
            available_mib=limit >> 20,
        )
    return n_ctx if entry.n_ctx is None else entry.n_ctx, size


def _check_workers(entry: LlamaCppEntry) -> None:
    """Raises ConfigError if the connection to an RPC worker is not protected, unless the config entry allows
    unprotected connections."""
    for endpoint in () if entry.rpc_unprotected else entry.rpc:
        if not is_protected(parts_of(endpoint)[0]):
            raise ConfigError(
                f"backend {entry.name!r}: the RPC worker {endpoint} is neither on this machine nor behind"
                " WireGuard, and its protocol has no encryption and no authentication; forward its port"
                " through SSH and give the local address, or set `rpc_unprotected`"
            )


def _changes(path: Path, fds: Sequence[int]) -> Callable[[], None]:
    """Returns a function that raises ModelError if one of the open files has changed since this call."""

    def stamps() -> list[tuple[int, int]]:
        return [(found.st_size, found.st_mtime_ns) for found in map(os.fstat, fds)]

    before = stamps()

    def check() -> None:
        if stamps() != before:
            raise ModelError(
                f"the model file {path} was changed while it was served; put it back or import it anew,"
                " then reload inferd"
            )

    return check


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
