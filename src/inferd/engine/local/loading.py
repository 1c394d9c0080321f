"""Helpers for loading a model: llama.cpp's log lines, the threads that prepare requests, and the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from inferd import log
from inferd.engine.backend import Accelerator
from inferd.engine.local import _llama
from inferd.errors import BootCancelled, ModelError

_log = log.get("llamacpp")

GGML_WARN, GGML_ERROR = 3, 4

PREPARING_STACK_BYTES = 256 << 20
"""The stack size of a preparing thread. It suffices for the deepest expression and value of a chat template
that template_limits.cpp allows. Only the used part of a stack takes memory."""


def pass_on_log(at_least: int = 0) -> str:
    """Moves llama.cpp's log lines to inferd's log. Lines below the level ``at_least`` become debug lines.
    Returns the first error line, which says more than those that follow from it, or ``""``."""
    first_error = ""
    for level, text in _llama.drain_log():
        if level == GGML_ERROR:
            first_error = first_error or text
        if level >= at_least and level >= GGML_WARN:
            _log.warn("llama.cpp", line=text)
        else:
            _log.debug("llama.cpp", line=text)
    return first_error


@contextmanager
def loading(cancelled: threading.Event) -> Iterator[None]:
    """A context manager for a load. Adds llama.cpp's reason to a ``ModelError``. Raises ``BootCancelled`` if
    the load succeeds but ``cancelled`` is set."""
    pass_on_log()  # an earlier error is not the reason of this load's
    try:
        yield
    except ModelError as error:
        reason = pass_on_log(GGML_ERROR)
        raise ModelError(f"{error}: {reason}" if reason else str(error)) from None
    if cancelled.is_set():
        raise BootCancelled("the load was cancelled")
    pass_on_log(GGML_ERROR)


def preparing_threads(count: int = 2) -> ThreadPoolExecutor:
    """Starts ``count`` threads that render and tokenise prompts and parse grammars. With one thread for each
    concurrent request, no request waits for the preparation of another.

    Raises ModelError if the system has no memory for the threads' stacks.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix="inferd-prepare")
    all_started = threading.Barrier(count)
    usual = threading.stack_size(PREPARING_STACK_BYTES)
    try:
        for started in [pool.submit(all_started.wait) for _ in range(count)]:
            started.result()
    except (RuntimeError, MemoryError) as error:
        all_started.abort()  # otherwise the started threads wait forever
        pool.shutdown(wait=False)
        raise ModelError(f"the system has no room for {count} threads: lower --active-permits") from error
    finally:
        threading.stack_size(usual)
    return pool


@contextmanager
def ended_on_error(pool: ThreadPoolExecutor) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pool.shutdown()
        raise


def accelerator_of(n_gpu_layers: int, n_layer: int) -> Accelerator:
    """Returns the device that computes a model with ``n_layer`` layers. If ``n_gpu_layers`` is -1, the GPU
    computes all layers. llama.cpp counts the output matrix as one more layer."""
    layers = n_layer + 1
    devices = _llama.devices()
    gpu = next((d for d in devices if d[0] in ("gpu", "igpu")), None)
    if gpu is None or n_gpu_layers == 0:
        cpu = next((d for d in devices if d[0] == "cpu"), ("cpu", "CPU", "", 0))
        return Accelerator("cpu", device_name=cpu[2], cpu_variant=_llama.cpu_variant(), layers=layers)
    return Accelerator(
        kind=gpu[1].rstrip("0123456789").lower(),
        gpu_layers=layers if n_gpu_layers < 0 else min(n_gpu_layers, layers),
        device_name=gpu[2],
        vram_total_bytes=gpu[3],
        cpu_variant=_llama.cpu_variant(),
        layers=layers,
    )
