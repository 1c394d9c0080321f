"""Loading a model: errors, progress and cancellation."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from inferd.engine.local import _llama
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.local.loading import preparing_threads
from inferd.engine.local.opening import LlamaCppConfig
from inferd.errors import BootCancelled, InvalidRequest, ModelError
from tests.demo_model import demo_model
from tests.tiny_bert import write_bert
from tests.unit.test_llamacpp import ask, backend, load, load_model, read


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("text", "invalid magic characters"),
        ("cut", ""),
        ("half", "data is not within the file bounds"),
        ("empty", ""),
    ],
)
def test_a_file_that_is_not_a_model_is_refused_with_a_reason(
    tmp_path: Path, damage: str, reason: str
) -> None:
    path = tmp_path / "broken.gguf"
    whole = demo_model().read_bytes()
    broken = {"text": b"hello" * 100, "cut": whole[: 1 << 20], "half": whole[: len(whole) // 2], "empty": b""}
    path.write_bytes(broken[damage])
    with pytest.raises(ModelError, match=rf"broken\.gguf.*{reason}"):
        load(path)


def test_a_model_without_text_output_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_bert(path)
    with pytest.raises(ModelError, match="--embed"):
        load(path, n_ctx=32)


def test_a_load_fails_if_one_of_its_threads_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if began:
            raise RuntimeError("can't start new thread")
        began.append(thread)
        original(thread)

    original = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ModelError, match="no room for 2 threads: lower --active-permits"):
        preparing_threads()
    began[0].join()


def test_a_load_ends_when_it_is_cancelled() -> None:
    cancelled = threading.Event()
    cancelled.set()
    with demo_model().open("rb") as file:
        config = LlamaCppConfig(name="t", model="t", path=demo_model(), fd=file.fileno(), n_ctx=256)
        with pytest.raises(BootCancelled):
            LlamaCpp.load(config, progress=lambda phase, details: None, cancelled=cancelled)


def test_an_error_of_the_progress_callback_ends_the_load_and_is_raised() -> None:
    def progress(phase: str, details: object) -> None:
        raise ZeroDivisionError("the subscriber is gone")

    with demo_model().open("rb") as file:
        config = LlamaCppConfig(name="t", model="t", path=demo_model(), fd=file.fileno(), n_ctx=256)
        with pytest.raises(ZeroDivisionError, match="the subscriber is gone"):
            LlamaCpp.load(config, progress=progress, cancelled=threading.Event())


async def test_no_more_context_is_served_than_was_asked_for() -> None:
    async with backend(n_ctx=300) as engine:
        assert engine.capabilities().n_ctx == 300
        with pytest.raises(InvalidRequest, match="the context is 300"):
            await engine.generate(ask("one " * 310))
        request = ask("hi", max_tokens=1000)
        _, done = await read(await engine.generate(request))
        assert done.usage.prompt_tokens + done.usage.completion_tokens == 301


def test_a_context_too_large_for_llama_cpp_is_refused() -> None:
    options = {"n_batch": 32, "threads": 1, "flash_attention": "off", "kv_type": "f16", "unified": False}
    with pytest.raises(ModelError, match=r"2 x 2147483647 tokens is more than llama\.cpp can count"):
        _llama.Engine(load_model(), n_ctx=2**31 - 1, n_seq=2, **options)


def test_loading_reports_its_progress() -> None:
    phases: list[tuple[str, dict[str, object]]] = []
    with demo_model().open("rb") as file:
        config = LlamaCppConfig(name="t", model="t", path=demo_model(), fd=file.fileno(), n_ctx=256)
        LlamaCpp.load(config, progress=lambda *report: phases.append(report), cancelled=threading.Event())
    fractions = [details["progress"] for phase, details in phases if phase == "mmap"]
    assert fractions == sorted(fractions)  # type: ignore[type-var]
    assert fractions[-1] == 1.0
    assert phases[-1] == ("kv_cache", {"n_ctx": 256})


def test_a_required_missing_gpu_is_reported() -> None:
    if any(kind in ("gpu", "igpu") for kind, *_ in _llama.devices()):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="require-gpu"):
        load(demo_model(), require_gpu=True)
