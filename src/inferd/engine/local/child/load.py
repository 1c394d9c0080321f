"""Loads a model from its descriptors, in the engine process."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from inferd.engine.backend import Need, Needs
from inferd.engine.local import _llama, file_pages, power
from inferd.engine.local.child.messages import Granted, Load, Template
from inferd.engine.local.embedding import EmbeddingModel
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.local.loading import PREPARING_STACK_BYTES, accelerator_of, loading, preparing_threads
from inferd.engine.local.opening import LlamaCppConfig, dry_embedder, dry_run, fitting_part
from inferd.engine.local.rpc.workers import parts_of, reach
from inferd.errors import ModelError
from inferd.progress import Progress


def load_model(
    load: Load,
    fds: Sequence[int],
    progress: Progress,
    ask: Callable[[Needs], Granted] = lambda needs: Granted(),
) -> LlamaCpp | EmbeddingModel:
    """Loads the model. Blocks. Raises ModelError.

    ``ask`` gets the needs of the model, and returns the answer once there is room for the model.
    :class:`Load` says when the process asks.

    ``fds`` are the descriptors of the model's files in order. The descriptors of the projector, the draft
    model and the adapters follow, as far as ``load`` names these.
    """
    model_fd = fds[0]
    embeds = load.embed
    if embeds is None:
        embeds = load.vectors_wanted and _llama.file_pooling(model_fd) not in ("unspecified", "none")
    for endpoint in load.workers:
        reach(endpoint, load.worker_absent_secs)
        if not _llama.add_worker(endpoint):
            raise ModelError(f"the RPC worker {endpoint} has no device that can compute")
    beside = iter(fds[load.parts :])
    config = LlamaCppConfig(
        name=load.name,
        model=load.model,
        path=Path(load.path),
        fd=model_fd,
        parts=tuple(fds[1 : load.parts]),
        n_ctx=load.embed_n_ctx if embeds else load.n_ctx,
        n_parallel=load.n_parallel,
        n_gpu_layers=_offloaded_layers(load),
        output_here=bool(load.workers) and not _has_gpu(),
        require_gpu=load.require_gpu,
        threads=load.threads,
        n_batch=load.n_batch,
        flash_attention=load.flash_attention,
        kv_cache_type=load.kv_cache_type,
        kv_unified=load.kv_unified,
        cache_mib=load.cache_mib,
        chat_template=load.chat_template,
        ahead_tokens=load.ahead_tokens,
        keep_thinking=load.keep_thinking,
        drafts=load.drafts,
        projector=Path(f"/dev/fd/{next(beside)}") if load.projector else None,
        draft_fd=next(beside) if load.draft_model else None,
        adapters=tuple(zip(load.adapters, beside, strict=True)),
    )
    found = accelerator_of(config.n_gpu_layers, 0).kind
    if load.force_backend not in (None, found):
        raise ModelError(
            f"INFERD_FORCE_BACKEND asks for {load.force_backend}, but this model would run on {found};"
            " install a build and a driver for it, or unset the variable"
        )
    if load.contexts and not load.workers and (found != "cpu" or load.asks):
        granted = ask(Needs((), {}, {})) if found == "cpu" else _ask_for_gpu(load, config, embeds, ask)
        n_ctx = config.n_ctx if embeds else granted.n_ctx
        config = replace(config, n_ctx=n_ctx, n_gpu_layers=granted.layers)
    cancelled = threading.Event()  # never set: the daemon ends the process to stop a load
    for key, useless in (("lora", load.adapters), ("draft", load.draft_model)):
        if embeds and useless:
            raise ModelError(f"{load.name!r} generates no text, so its `{key}` has no use: remove it")
    if embeds:
        return EmbeddingModel.load(config, pooling=load.embed_pooling, progress=progress, cancelled=cancelled)
    return LlamaCpp.load(config, progress=progress, cancelled=cancelled)


def _ask_for_gpu(
    load: Load, config: LlamaCppConfig, embeds: bool, ask: Callable[[Needs], Granted]
) -> Granted:
    def measure(config: LlamaCppConfig, contexts: Sequence[int]) -> list[Need]:
        return dry_embedder(config, load.embed_pooling) if embeds else dry_run(config, contexts)

    whole = Needs(tuple(measure(config, load.contexts)), _llama.free_of_gpus(), _gpus())
    granted = ask(whole)
    if granted.room is None:
        return granted
    least = 1 if load.require_gpu or load.force_backend else 0
    shortest = load.contexts[-1:]
    part = fitting_part(config, lambda each: measure(each, shortest)[0], granted.room, least)
    # Not what is free now: if it were a little less, the layers would no longer fit.
    return ask(whole._replace(sizes=(part,)))


def analyse_template(load: Load, fd: int) -> Template:
    """Analyses the chat template as :func:`load_model` does, without loading weights. ``fd`` is the first
    file of the model. Blocks. Raises ModelError."""
    with preparing_threads(1) as preparing, loading(threading.Event()):
        model = _llama.Model(
            fd, path=load.path, n_gpu_layers=0, report=lambda fraction: True, vocab_only=True
        )
        templates = preparing.submit(_llama.Templates, model, load.chat_template).result()
        return Template(tools=templates.tools, thinking=templates.thinking)


def _offloaded_layers(load: Load) -> int:
    """Returns the number of layers that GPUs and RPC workers compute instead of the CPU of this host.
    llama.cpp distributes these layers over the GPUs and workers by their memory."""
    if load.workers and not _has_gpu():
        return load.worker_layers
    if load.workers and load.force_backend == "cpu":
        raise ModelError("INFERD_FORCE_BACKEND is cpu, but `rpc` would also use the GPU; unset the variable")
    return 0 if load.force_backend == "cpu" else load.n_gpu_layers


def _gpus() -> dict[str, int]:
    """Returns the total memory of each GPU, in bytes."""
    return {name: size for kind, name, _, size in _llama.devices() if kind in ("gpu", "igpu")}


def _has_gpu() -> bool:
    return bool(_gpus())


_OTHER_BYTES = 1 << 30
"""The memory that an engine needs besides its model: for the interpreter, pictures and sounds."""


def limit_memory(load: Load, profile: str) -> None:
    """Limits the memory of this process to the model's expected need. Mapped files do not count.

    A process with a GPU gets no limit, because GPU drivers reserve far more memory than they use.
    """
    if load.memory_bytes and profile in ("cpu", "rpc") and sys.platform == "linux":
        most = load.memory_bytes + (load.cache_mib << 20) + _OTHER_BYTES
        most += load.n_parallel * PREPARING_STACK_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


ANALYSIS_CPU_SECS = 30
"""The processor time of a process that only analyses a template, its start included. A vocabulary of 262,144
tokens takes 1.3 s on a server, and several times as long on a small machine."""


def limit_time() -> None:
    """Limits the processor time of this process. Time in which it waits for a processor does not count."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or hard > ANALYSIS_CPU_SECS:
        # SIGXCPU at the first limit tells the daemon more than SIGKILL at the second.
        resource.setrlimit(resource.RLIMIT_CPU, (ANALYSIS_CPU_SECS, ANALYSIS_CPU_SECS + 1))


def cage_profile(load: Load) -> str:
    """Returns the sandbox profile for this load (see :mod:`~inferd.engine.local.child.cage`). A load with a
    GPU or with RPC workers needs a profile that permits more."""
    on_gpu = load.n_gpu_layers != 0 and load.force_backend != "cpu"
    if load.cage == "cpu" and on_gpu and _has_gpu():
        return "gpu"
    return "rpc" if load.cage == "cpu" and load.workers else load.cage


def worker_ports(load: Load) -> list[int]:
    return [parts_of(endpoint)[1] for endpoint in load.workers]


def preload_modules(load: Load) -> None:
    """Imports the modules and opens the files that this load needs later, because the sandbox forbids opening
    files."""
    import concurrent.futures.thread  # noqa: F401
    import encodings.idna  # noqa: F401
    import traceback  # noqa: F401

    if load.projector:
        from PIL import Image, WebPImagePlugin  # noqa: F401

        Image.preinit()  # the other formats of media.IMAGE_TYPES
    if load.template_only:
        return  # it uses no device, and to ask a GPU for its memory starts the driver
    _llama.devices()
    _llama.useful_threads()
    power.supplies()
    file_pages.hold()
