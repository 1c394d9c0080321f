"""LoRA adapters: each request selects one by its name, and adapters are never mixed up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from inferd.engine.backend import Stream
from inferd.engine.events import Done, Frames
from inferd.engine.local.child.load import load_model
from inferd.engine.local.child.messages import Adapter, Load
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.requests import FrameTemplate, Message
from inferd.errors import ModelError
from tests.requests import generate_request
from tests.tiny_llama import random_llama, write_adapter

FRAME = FrameTemplate(b"", b"")
QUESTION = (
    "Say something that is long enough to be kept for the next request, and for the one behind it. " * 3
)


@asynccontextmanager
async def engine(*adapters: Path, scale: float = 1.0, **options: object) -> AsyncIterator[LlamaCpp]:
    """The random model with adapters named after their files."""
    named = tuple(Adapter(path.stem, f"key of {path.stem}", scale) for path in adapters)
    settings = {"n_ctx": 1024, "n_parallel": 4, "threads": 1, "drafts": "off", **options}
    wanted = Load(name="t", model="t", path="t", adapters=named, **settings)  # type: ignore[arg-type]
    with ExitStack() as files:
        fds = [files.enter_context(path.open("rb")).fileno() for path in (random_llama(), *adapters)]
        model = await asyncio.to_thread(load_model, wanted, fds, lambda phase, details: None)
    assert isinstance(model, LlamaCpp)
    await model.start()
    try:
        yield model
    finally:
        await model.close()


@pytest.fixture
def pirate(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "pirate.gguf", seed=1)


@pytest.fixture
def poet(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "poet.gguf", seed=2)


async def read(stream: Stream) -> tuple[bytes, Done]:
    text = b""
    async for event in stream:
        if isinstance(event, Done):
            return text, event
        assert isinstance(event, Frames)
        text += event.data
    raise AssertionError("the stream ended without Done")


async def answer(model: LlamaCpp, lora: str, n: int = 8) -> tuple[bytes, Done]:
    question = (Message("user", QUESTION),)
    request = generate_request(messages=question, max_tokens=n, temperature=0.0, lora=lora, frame=FRAME)
    return await read(await model.generate(request))


async def test_an_adapter_changes_the_text_and_without_it_the_text_is_as_before(
    pirate: Path, poet: Path
) -> None:
    async with engine() as plain:
        before, _ = await answer(plain, "")
    async with engine(pirate, poet) as model:
        assert model.capabilities().lora == ("pirate", "poet")
        base, _ = await answer(model, "")
        first, _ = await answer(model, "pirate")
        second, _ = await answer(model, "poet")
        assert base == before
        assert len({base, first, second}) == 3
        assert [(await answer(model, name))[0] for name in ("", "pirate", "poet")] == [base, first, second]


async def test_the_scale_of_an_adapter_is_its_strength(pirate: Path) -> None:
    told = []
    for scale in (0.0, 1.0, -2.0):
        async with engine(pirate, scale=scale) as model:
            told.append((await answer(model, "pirate"))[0])
            base, _ = await answer(model, "")
    assert told[0] == base
    assert len(set(told)) == 3


async def test_requests_with_different_adapters_run_concurrently(pirate: Path, poet: Path) -> None:
    names = ("", "pirate", "poet", "pirate")
    async with engine(pirate, poet) as model:
        alone = [(await answer(model, name, 12))[0] for name in names]
    async with engine(pirate, poet) as model:
        together = await asyncio.gather(*(answer(model, name, 12) for name in names))
    assert [text for text, _ in together] == alone


async def test_adapters_do_not_share_cached_prefixes(pirate: Path, poet: Path) -> None:
    async with engine(pirate, poet) as model:
        assert (await answer(model, "pirate", 1))[1].usage.cached_tokens == 0
        _, foreign = await answer(model, "poet", 1)
        assert foreign.usage.cached_tokens == 0
        assert foreign.cache is not None
        assert foreign.cache.miss == "model"
        _, own = await answer(model, "pirate", 1)
        assert own.usage.cached_tokens == own.usage.prompt_tokens


@pytest.fixture
def no_adapters(tmp_path: Path, pirate: Path) -> list[Path]:
    """A model, an adapter for a model of another width, and a truncated adapter."""
    wide = write_adapter(tmp_path / "wide.gguf", seed=3, width=32)
    short = tmp_path / "short.gguf"
    short.write_bytes(pirate.read_bytes()[:-2000])
    return [random_llama(), wide, short]


async def test_an_adapter_of_another_model_is_refused(no_adapters: list[Path]) -> None:
    for path in no_adapters:
        with pytest.raises(ModelError, match=f"cannot load the adapter {path.stem!r}"):
            async with engine(path):
                pass


async def test_a_model_that_makes_vectors_takes_no_adapter(pirate: Path) -> None:
    with pytest.raises(ModelError, match="its `lora` has no use"):
        async with engine(pirate, embed=True):
            pass
