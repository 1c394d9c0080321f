"""Makes llama.cpp's objects for a model: for a load, and for the dry run before it.

A dry run makes the same objects from the headers of the model's files, without weights and buffers. llama.cpp
then says what they would take in RAM and on each GPU.
"""

from __future__ import annotations

import bisect
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from inferd.engine.backend import Need
from inferd.engine.local import _llama
from inferd.engine.local.child.messages import Adapter
from inferd.engine.local.loading import accelerator_of, loading
from inferd.errors import ModelError

MAX_SEQUENCES = 64
"""The number of sequences in a batch of an embedding model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppConfig:
    """The model to load, and its options.

    ``name`` is the name of the config entry, and ``model`` is the name of the model. ``fd`` is the open,
    verified file to load; ``parts`` are the descriptors of a split model's other files. ``path`` is for
    display only. ``n_ctx`` is the context of one request in tokens. ``n_parallel`` is the maximum number of
    concurrent requests. If ``n_gpu_layers`` is -1, GPUs and RPC workers compute all layers. ``output_here``
    keeps the output matrix on this host's CPU. If ``threads`` is 0, the token loop chooses the number.
    ``flash_attention`` and ``drafts`` are ``auto``, ``on`` or ``off``. ``projector`` is the GGUF file of the
    encoder for images and sounds. ``chat_template`` replaces the model's own template unless it is empty.
    ``draft_fd`` is the open file of a draft model with the same vocabulary. ``ahead_tokens`` limits the
    tokens that :mod:`~inferd.engine.local.past.ahead` computes after an answer. With ``keep_thinking``, the
    prompt keeps earlier thinking that the client sends back, even if the template would omit it. ``adapters``
    are pairs of an adapter and its open file.
    """

    name: str
    model: str
    path: Path
    fd: int
    parts: tuple[int, ...] = ()
    n_ctx: int = 8192
    n_parallel: int = 4
    n_gpu_layers: int = -1
    require_gpu: bool = False
    output_here: bool = False
    threads: int = 0
    n_batch: int = 512
    flash_attention: str = "auto"
    kv_cache_type: str = "f16"
    kv_unified: bool = False
    cache_mib: int = 1024
    ahead_tokens: int = 0
    keep_thinking: bool = False
    drafts: str = "auto"
    projector: Path | None = None
    draft_fd: int | None = None
    chat_template: str = ""
    adapters: tuple[tuple[Adapter, int], ...] = ()


def uses_gpu(config: LlamaCppConfig) -> bool:
    return accelerator_of(config.n_gpu_layers, 0).kind != "cpu"


def check_gpu(config: LlamaCppConfig) -> None:
    """Raises ModelError if the model must use a GPU and cannot."""
    if config.require_gpu and not uses_gpu(config):
        raise ModelError(
            "no GPU can be used: this build or this machine has none, or --n-gpu-layers is 0; "
            "install a build for your GPU or drop --require-gpu"
        )


def open_model(config: LlamaCppConfig, report: Callable[[float], bool], *, dry: bool = False) -> _llama.Model:
    return _llama.Model(
        config.fd,
        path=str(config.path),
        n_gpu_layers=config.n_gpu_layers,
        report=report,
        parts=config.parts,
        output_here=config.output_here,
        dry=dry,
    )


def open_draft(
    config: LlamaCppConfig, report: Callable[[float], bool], *, dry: bool = False
) -> _llama.Model | None:
    if config.draft_fd is None or config.drafts == "off":
        return None
    return _llama.Model(
        config.draft_fd,
        path=f"the draft model of {config.name}",
        n_gpu_layers=config.n_gpu_layers,
        report=report,
        dry=dry,
    )


def context_size(n_ctx: int, model: _llama.Model) -> int:
    """Returns ``n_ctx``, but at most the model's training context. 0 means the training context."""
    return min(n_ctx or model.n_ctx_train, model.n_ctx_train)


def open_engine(
    config: LlamaCppConfig,
    model: _llama.Model,
    n_ctx: int,
    draft_model: _llama.Model | None,
    projector: _llama.Projector | None = None,
    adapters: Sequence[_llama.Adapter] = (),
) -> _llama.Engine:
    # On a CPU flash attention speeds up prompts and slows down answers; answers take more of a
    # request's time.
    flash = config.flash_attention
    return _llama.Engine(
        model,
        n_ctx=n_ctx,
        n_seq=config.n_parallel,
        n_batch=config.n_batch,
        threads=config.threads,
        flash_attention="off" if flash == "auto" and not uses_gpu(config) else flash,
        kv_type=config.kv_cache_type,
        unified=config.kv_unified,
        cache_bytes=config.cache_mib << 20,
        drafts=config.drafts,
        projector=projector,
        adapters=adapters,
        draft_model=draft_model,
    )


def open_embedder(
    config: LlamaCppConfig, model: _llama.Model, n_ctx: int, pooling: str | None
) -> _llama.Embedder:
    return _llama.Embedder(
        model,
        n_ctx=n_ctx,
        n_seq=MAX_SEQUENCES,
        pooling=pooling or "unspecified",
        threads=config.threads,
        flash_attention=config.flash_attention,
    )


def taken(config: LlamaCppConfig, engine: _llama.Engine) -> tuple[int, dict[str, int]]:
    """Returns the bytes that a model takes in RAM and on each GPU. Adapters count with the sizes of their
    files, as if each GPU held them."""
    here, gpus = engine.taken("" if config.projector is None else str(config.projector))
    beside = sum(os.fstat(fd).st_size for _, fd in config.adapters)
    return here, {gpu: size + beside for gpu, size in gpus.items()}


def dry_run(config: LlamaCppConfig, contexts: Sequence[int]) -> list[Need]:
    """Returns the needs of a model that generates, one for each of the ``contexts``. Blocks; takes about as
    long as reading the vocabulary."""
    needs = []
    with loading(threading.Event()):
        model = open_model(config, _go_on, dry=True)
        draft = open_draft(config, _go_on, dry=True)
        for n_ctx in contexts:
            engine = open_engine(config, model, context_size(n_ctx, model), draft)
            needs.append(Need(n_ctx, *taken(config, engine), config.n_gpu_layers))
    return needs


def dry_embedder(config: LlamaCppConfig, pooling: str | None) -> list[Need]:
    """Returns the need of a model that makes vectors or scores."""
    with loading(threading.Event()):
        model = open_model(config, _go_on, dry=True)
        embedder = open_embedder(config, model, min(config.n_ctx, model.n_ctx_train), pooling)
        return [Need(config.n_ctx, *embedder.taken(), config.n_gpu_layers)]


def fitting_part(
    config: LlamaCppConfig, measure: Callable[[LlamaCppConfig], Need], room: Mapping[str, int], least: int
) -> Need:
    """Returns the need of a model with as many layers on the GPUs as fit into ``room``, the bytes on each
    GPU. The number of layers is at least ``least``, even if these do not fit, and the first layer always
    stays on the CPU. Blocks; calls ``measure``, a dry run, about log2 of the model's layers times."""
    with loading(threading.Event()):
        counts = range(least, open_model(config, _go_on, dry=True).n_layer + 1)

    @functools.cache
    def need(layers: int) -> Need:
        return measure(replace(config, n_gpu_layers=layers))

    def too_large(layers: int) -> bool:
        return any(size > room.get(gpu, size) for gpu, size in need(layers).gpus.items())

    fitting = bisect.bisect_right(counts, False, key=too_large)
    return need(counts[max(0, fitting - 1)])


def _go_on(fraction: float) -> bool:
    return True
