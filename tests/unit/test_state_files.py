"""Files of the prefix cache with a real engine process: when they are written, and their owners."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from inferd.daemon.state_files import EntryStates
from inferd.engine.events import Done
from inferd.engine.local import states
from inferd.engine.local.child import messages as m
from inferd.engine.local.child.messages import Load
from inferd.engine.local.child.supervisor import HostedModel
from inferd.engine.requests import GenerateRequest, Message
from inferd.store.states import StateFiles
from tests.in_process import until
from tests.requests import generate_request
from tests.tiny_llama import random_llama

LONG = "Remember: " + ", ".join(f"thing {n}" for n in range(40)) + "."


@asynccontextmanager
async def model(directory: Path, **options: object) -> AsyncIterator[tuple[HostedModel, StateFiles]]:
    """An engine with one slot whose files are in ``directory``."""
    path = random_llama()
    wanted = {"n_ctx": 2048, "n_parallel": 1, "threads": 1, "file_after_ms": 1 << 30, **options}
    load = Load(name="test", model="test", path=str(path), **wanted)  # type: ignore[arg-type]
    files = StateFiles(directory, 1 << 30)
    fds = [os.open(path, os.O_RDONLY)]
    hosted = HostedModel(load, fds, lambda phase, details: None, states=EntryStates(files, "test", "m"))
    try:
        await hosted.start()
        yield hosted, files
    finally:
        await hosted.close()


def ask(text: str = LONG, **more: object) -> GenerateRequest:
    asked = generate_request(messages=(Message("user", text),), max_tokens=4, temperature=0.0)
    return replace(asked, scope="1", **more)  # type: ignore[arg-type]


async def done(hosted: HostedModel, request: GenerateRequest) -> Done:
    async for event in await hosted.generate(request):
        if isinstance(event, Done):
            return event
    raise AssertionError("no end")


async def cached(hosted: HostedModel, request: GenerateRequest) -> tuple[int, str]:
    ended = await done(hosted, request)
    assert ended.cache is not None
    return ended.usage.cached_tokens, ended.cache.miss


async def test_close_saves_unsaved_prefixes_for_their_user_only(tmp_path: Path) -> None:
    async with model(tmp_path / "c") as (hosted, files):
        first = await done(hosted, ask())
        assert await cached(hosted, replace(ask("Not to be kept. " * 30), cache=False)) == (0, "opted out")
    (file,) = files.files()
    assert file.head.scope == b"1"
    async with model(tmp_path / "c") as (hosted, _):
        assert await cached(hosted, replace(ask(), scope="2")) == (0, "other user")
        again = await done(hosted, ask())
        assert again.usage.cached_tokens == first.usage.prompt_tokens - 2
        assert again.content == first.content


async def test_an_idle_engine_writes_a_conversation_and_then_its_next_turn(tmp_path: Path) -> None:
    async with model(tmp_path / "c", file_after_ms=1) as (hosted, files):
        answer = await done(hosted, ask())
        await until(lambda: [kept.number for kept in files.files()] == [1])
        text = json.loads(b'"' + (answer.content or b"") + b'"')
        turns = (Message("user", LONG), Message("assistant", text), Message("user", "Go on."))
        await done(hosted, replace(ask(), messages=turns))
        await until(lambda: [kept.number for kept in files.files()] == [2])  # in the place of the first


async def test_an_evicted_prefix_is_loaded_from_its_file(tmp_path: Path) -> None:
    texts = ["".join(f"{letter} is {n}. " for n in range(240)) for letter in ("A", "B", "C")]
    async with model(tmp_path / "c", cache_mib=1) as (hosted, files):
        first = await done(hosted, ask(texts[0]))
        for text in texts[1:]:
            await done(hosted, ask(text))
        await until(lambda: len(files.files()) == 1)
        again = await done(hosted, ask(texts[0]))
        assert again.usage.cached_tokens == first.usage.prompt_tokens - 2
        assert again.content == first.content


async def test_a_file_that_was_removed_meanwhile_is_computed_again(tmp_path: Path) -> None:
    async with model(tmp_path / "c") as (hosted, _):
        await done(hosted, ask())
    async with model(tmp_path / "c") as (hosted, files):
        for kept in files.files():
            kept.path.unlink()
        assert (await cached(hosted, ask()))[0] == 0
        assert (await cached(hosted, ask()))[0] > 0


async def test_a_write_that_has_begun_outlives_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "FLUSH_SECS", 0.0)
    disk, asked = threading.Event(), asyncio.Event()

    class Disk:
        def save(self, state: m.LeavingState, fd: int) -> tuple[int, list[int]]:
            disk.wait()
            return 1, []

    class Process:
        on_state: Any = None

        def tell_states(self, kind: int, *_: object) -> None:
            asked.set()

    process = Process()
    saver = states.DaemonStates(cast("Any", Disk()), cast("Any", process))
    state = m.LeavingState(scope=b"1", session=b"", tokens=b"", replaces=[])
    process.on_state(m.SAVE, 0, m.encode(state), [os.open(os.devnull, os.O_RDONLY)])
    flushing = asyncio.create_task(saver.flush())
    try:
        await asked.wait()
        await asyncio.sleep(0)
        assert not flushing.done()
    finally:
        disk.set()
    await flushing
