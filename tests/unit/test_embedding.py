"""Embeddings: correct values with a real model, and every step and error with tiny random models."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from inferd.engine.local import _llama
from inferd.engine.local.embedding import EmbeddingModel
from inferd.engine.local.opening import LlamaCppConfig
from inferd.engine.requests import EmbedRequest
from inferd.errors import BackendInternal, BootCancelled, InvalidRequest, ModelError, NotReady, Unavailable
from inferd.progress import Progress
from tests import minilm
from tests.demo_model import demo_model
from tests.in_process import until
from tests.tiny_bert import CLS, CONTEXT, SEP, WIDTH, write_bert

Floats = npt.NDArray[np.float32]

TEXTS = (
    "Cats are small mammals that purr.",
    "A kitten sleeps on the sofa.",
    "The stock market fell by three percent on Monday.",
    "Where is the nearest railway station?",
    "x = [i * i for i in range(10)]  # squares, of course!",
)
DECOMPOSED = ("Crème brûlée, Tiếng Việt", "사랑하는 사람")


def nothing(phase: str, details: dict[str, object]) -> None:
    pass


def load(
    path: Path,
    *,
    n_ctx: int = 2048,
    pooling: str | None = None,
    progress: Progress = nothing,
    cancelled: threading.Event | None = None,
) -> EmbeddingModel:
    fd = os.open(path, os.O_RDONLY)
    try:
        config = LlamaCppConfig(name="test", model="tiny", path=path, fd=fd, n_ctx=n_ctx, threads=1)
        return EmbeddingModel.load(
            config, pooling=pooling, progress=progress, cancelled=cancelled or threading.Event()
        )
    finally:
        os.close(fd)


@asynccontextmanager
async def serving(
    path: Path, *, n_ctx: int = 2048, pooling: str | None = None
) -> AsyncIterator[EmbeddingModel]:
    model = await asyncio.to_thread(load, path, n_ctx=n_ctx, pooling=pooling)
    await model.start()
    try:
        yield model
    finally:
        await model.close()


async def vectors(
    model: EmbeddingModel, *texts: str, dimensions: int | None = None, task: str | None = None
) -> Floats:
    made = await model.embed(EmbedRequest(inputs=texts, dimensions=dimensions, task=task))
    return np.frombuffer(made.vectors, "<f4").reshape(len(texts), made.width)


def raw(path: Path, *, threads: int = 1) -> _llama.Embedder:
    """The compiled half alone, with 8 sequences a batch."""
    with path.open("rb") as file:
        model = _llama.Model(file.fileno(), path=str(path), n_gpu_layers=0, report=lambda fraction: True)
    return _llama.Embedder(
        model, n_ctx=CONTEXT, n_seq=8, pooling="unspecified", threads=threads, flash_attention="auto"
    )


def ids(tokens: bytes) -> list[int]:
    return np.frombuffer(tokens, "<i4").tolist()


class Held:
    """Wraps the compiled half: each batch waits for its release, and all are counted."""

    def __init__(self, model: EmbeddingModel) -> None:
        self.embedder = model._embedder
        self.passes = threading.Semaphore(0)
        self.batches: list[int] = []
        self.failure: RuntimeError | None = None
        self.interrupted = 0
        self.resume = self.embedder.resume
        self.text = self.embedder.text
        self.n_ctx = self.embedder.n_ctx
        model._embedder = self  # type: ignore[assignment]

    def open(self, batches: int = 1000) -> None:
        self.passes.release(batches)

    def compute(self, sequences: list[bytes]) -> bytes | None:
        self.batches.append(len(sequences))
        self.passes.acquire()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return self.embedder.compute(sequences)

    def interrupt(self) -> None:
        self.interrupted += 1
        self.embedder.interrupt()


# The real model.


async def test_vectors_are_those_of_the_published_model() -> None:
    texts = TEXTS + DECOMPOSED
    async with serving(minilm.minilm()) as model:
        made = await model.embed(EmbedRequest(inputs=texts))
    assert made.width == minilm.WIDTH
    assert made.input_tokens == sum(len(minilm.tokens(text)) for text in texts)
    rows = np.frombuffer(made.vectors, "<f4").reshape(len(texts), minilm.WIDTH)
    for text, row in zip(texts, rows, strict=True):
        assert row @ minilm.embed(text) >= 0.999
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]  # cats are nearer to kittens than to stocks


async def test_a_batch_equals_single_texts() -> None:
    texts = [f"{TEXTS[i % 5]} {i} " + "and on it goes " * (i % 7) for i in range(40)]
    async with serving(minilm.minilm()) as model:
        together = await vectors(model, *texts)
        for i in range(0, len(texts), 6):
            alone = await vectors(model, texts[i])
            assert alone[0] @ together[i] >= 0.99999


async def test_dimensions_cut_the_vector_and_scale_it_again() -> None:
    async with serving(minilm.minilm()) as model:
        whole = await vectors(model, TEXTS[0])
        cut = await vectors(model, TEXTS[0], dimensions=64)
        assert cut.shape == (1, 64)
        expected = whole[0, :64] / np.linalg.norm(whole[0, :64])
        assert np.allclose(cut[0], expected, atol=1e-6)
        assert np.array_equal(await vectors(model, TEXTS[0], dimensions=384), whole)
        with pytest.raises(InvalidRequest, match=r"dimensions is 385 .* have 384"):
            await vectors(model, TEXTS[0], dimensions=385)


async def test_a_text_beyond_the_model_is_refused_and_the_next_is_served() -> None:
    async with serving(minilm.minilm()) as model:  # whose 512 positions are fewer than the 2,048 asked for
        assert model.capabilities().n_ctx == 512
        long = "cat " * 511
        with pytest.raises(InvalidRequest, match=r"input\[1\] is 513 tokens long .* context is 512"):
            await vectors(model, "cat", long)
        assert (await vectors(model, "cat " * 510)).shape == (1, 384)  # 512 with the special tokens


# A decoder: causal, with a cache, and without special tokens.


async def test_a_decoder_model_uses_the_configured_pooling() -> None:
    async with serving(demo_model(), n_ctx=128, pooling="last") as model:
        together = await vectors(model, *TEXTS)
        for text, row in zip(TEXTS, together, strict=True):
            alone = await vectors(model, text)
            assert alone[0] @ row >= 0.999
        with pytest.raises(InvalidRequest, match=r"input\[0\] has no token"):
            await vectors(model, "")


def test_a_model_that_does_not_say_how_to_pool_is_refused() -> None:
    with pytest.raises(ModelError, match="embed_pooling"):
        load(demo_model(), n_ctx=64)


# Tiny models.


def test_a_file_says_how_it_pools_without_being_loaded(tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(b"GGUF and then nothing of sense")
    expected = {
        minilm.minilm(): "mean",
        write_bert(tmp_path / "ranks", pooling=gguf.PoolingType.RANK): "rank",
        demo_model(): "unspecified",
        tmp_path / "rubbish": "unspecified",
    }
    for path, pooling in expected.items():
        with path.open("rb") as file:
            assert _llama.file_pooling(file.fileno()) == pooling


async def test_the_family_decides_on_the_prefix(tmp_path: Path) -> None:
    async with serving(write_bert(tmp_path / "m", name="E5 tiny")) as model:
        marked = await vectors(model, "a b c", task="retrieval_document")
        assert np.array_equal(marked, await vectors(model, "passage: a b c"))
        assert not np.array_equal(marked, await vectors(model, "a b c"))
    async with serving(write_bert(tmp_path / "n", name="of no family")) as model:
        assert np.array_equal(
            await vectors(model, "a b c", task="retrieval_document"), await vectors(model, "a b c")
        )


def test_user_text_never_becomes_control_tokens(tmp_path: Path) -> None:
    embedder = raw(write_bert(tmp_path / "m"))
    tokens = ids(embedder.text(b"a [SEP] b"))
    assert tokens[0] == CLS
    assert tokens[-1] == SEP
    assert SEP not in tokens[1:-1]


def test_white_space_alone_is_the_special_tokens(tmp_path: Path) -> None:
    assert ids(raw(write_bert(tmp_path / "m")).text(b" \n")) == [CLS, SEP]


def test_inputs_that_would_abort_the_process_are_refused(tmp_path: Path) -> None:
    embedder = raw(write_bert(tmp_path / "m"))
    one = embedder.text(b"a")
    for batch in ([], [b""], [one * CONTEXT], [one] * 9, [embedder.text(b"a " * CONTEXT)]):
        with pytest.raises(RuntimeError):
            embedder.compute(batch)
    assert embedder.compute([one]) is not None


def test_an_interrupt_holds_until_it_is_taken_back(tmp_path: Path) -> None:
    embedder = raw(write_bert(tmp_path / "m"))
    embedder.interrupt()
    assert embedder.compute([embedder.text(b"a")]) is None
    assert embedder.compute([embedder.text(b"a")]) is None
    embedder.resume()
    assert embedder.compute([embedder.text(b"a")]) is not None


def test_a_vocabulary_that_cannot_be_tokenized_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no first token"):
        load(write_bert(tmp_path / "m", special=False))


def test_unit_vectors() -> None:
    rows = np.array([[3, 4, 12], [0, 0, 5], [-1e-20, 0, 0]], "<f4").tobytes()
    made = np.frombuffer(_llama.unit_vectors(rows, 3, 2), "<f4").reshape(3, 2)
    assert np.allclose(made, [[0.6, 0.8], [0, 0], [-1, 0]])
    for broken in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            _llama.unit_vectors(np.array([1, broken], "<f4").tobytes(), 2, 2)


# Several clients.


async def test_a_short_request_does_not_wait_for_a_long_one(tmp_path: Path) -> None:
    async with serving(write_bert(tmp_path / "m")) as model:
        held = Held(model)
        ended: list[str] = []

        async def ask(name: str, count: int) -> None:
            await vectors(model, *["a b c"] * count)
            ended.append(name)

        long = asyncio.create_task(ask("long", 200))
        await until(lambda: len(held.batches) == 1)
        short = asyncio.create_task(ask("short", 2))
        await until(lambda: len(model._jobs) == 2)
        held.open()
        await asyncio.gather(long, short)
        assert ended == ["short", "long"]


async def test_a_cancelled_request_is_left_out_of_the_next_batch(tmp_path: Path) -> None:
    async with serving(write_bert(tmp_path / "m")) as model:
        held = Held(model)
        leaving = asyncio.create_task(vectors(model, *["a b c"] * 200))
        await until(lambda: len(held.batches) == 1)
        staying = asyncio.create_task(vectors(model, "a", "b"))
        await until(lambda: len(model._jobs) == 2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert held.interrupted == 1  # no other request was in that batch
        held.open()
        assert (await staying).shape == (2, WIDTH)
        assert held.batches[1:] == [2]


async def test_an_awaited_batch_is_not_interrupted(tmp_path: Path) -> None:
    async with serving(write_bert(tmp_path / "m")) as model:
        held = Held(model)
        first = asyncio.create_task(vectors(model, "a"))
        await until(lambda: len(held.batches) == 1)
        leaving, staying = (asyncio.create_task(vectors(model, text)) for text in "bc")
        await until(lambda: len(model._jobs) == 2)
        held.open(1)
        await first
        await until(lambda: held.batches[1:] == [2])
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert held.interrupted == 0
        held.open()
        assert (await staying).shape == (1, WIDTH)


async def test_a_failed_batch_fails_its_requests_and_no_other(tmp_path: Path) -> None:
    async with serving(write_bert(tmp_path / "m")) as model:
        held = Held(model)
        held.failure = RuntimeError("llama.cpp failed")
        failing = asyncio.create_task(vectors(model, *["a b c"] * 200))
        await until(lambda: len(held.batches) == 1)
        fine = asyncio.create_task(vectors(model, "a"))
        await until(lambda: len(model._jobs) == 2)
        held.open()
        with pytest.raises(BackendInternal, match=r"llama\.cpp failed; the daemon's log"):
            await failing
        assert (await fine).shape == (1, WIDTH)
        assert held.batches[1:] == [1]


async def test_numbers_that_json_cannot_carry_are_a_failure(tmp_path: Path) -> None:
    async with serving(write_bert(tmp_path / "m")) as model:
        held = Held(model)
        held.compute = lambda sequences: np.full(WIDTH, np.nan, "<f4").tobytes()  # type: ignore[method-assign]
        with pytest.raises(BackendInternal, match="not finite"):
            await vectors(model, "a")


async def test_closing_ends_waiting_requests(tmp_path: Path) -> None:
    async with serving(write_bert(tmp_path / "m")) as model:
        held = Held(model)
        asked = [asyncio.create_task(vectors(model, "a")) for _ in range(2)]
        await until(lambda: len(held.batches) == 1 and len(model._jobs) + sum(held.batches) == 2)
        closing = asyncio.create_task(model.close())
        await until(lambda: model._closing)
        held.open()
        await closing
        for request in asked:
            with pytest.raises(Unavailable, match="closing"):
                await request
        with pytest.raises(NotReady):
            await vectors(model, "a")


# Loading.


def test_a_load_reports_its_progress(tmp_path: Path) -> None:
    phases: list[tuple[str, dict[str, object]]] = []
    path = write_bert(tmp_path / "m")
    load(path, progress=lambda phase, details: phases.append((phase, details)))
    assert phases[0][0] == "mmap"
    assert phases[0][1]["path"] == str(path)
    assert phases[-2][1]["progress"] == 1
    assert phases[-1] == ("kv_cache", {"n_ctx": CONTEXT})


def test_a_load_can_be_cancelled(tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(BootCancelled):
        load(write_bert(tmp_path / "m"), cancelled=cancelled)


def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="cannot load"):
        load(path)
