"""The prefix cache of models that cannot drop a tail: recurrent and hybrid layers, and sliding windows."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from inferd.engine.requests import GenerateRequest, Message
from tests.in_process import until
from tests.tiny_memories import random_model
from tests.unit.test_llamacpp import ask, backend
from tests.unit.test_prefix_reuse import LONG, OTHER, ask_with

SYSTEM = Message("system", "You keep lists. " + OTHER)
NEAR_END = 14
RECURRENT = ["mamba", "jamba"]


def turns(*texts: str, max_tokens: int = 12) -> GenerateRequest:
    """A conversation of the user and the model in turn."""
    roles = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return replace(ask("", max_tokens), messages=(SYSTEM, *roles))


@pytest.mark.parametrize("architecture", ["mamba", "jamba", "cohere2"])
async def test_the_same_request_again_computes_little_and_says_the_same(architecture: str) -> None:
    async with backend(random_model(architecture), n_parallel=2) as engine:
        first, done = await ask_with(engine, turns(LONG))
        again, repeated = await ask_with(engine, turns(LONG))
    assert len(set(first)) > 4
    assert again == first
    left = 0 if architecture == "cohere2" else NEAR_END
    assert repeated.usage.cached_tokens == done.usage.prompt_tokens - left


@pytest.mark.parametrize("architecture", RECURRENT)
async def test_a_state_that_ends_with_the_prompt_needs_no_checkpoint(architecture: str) -> None:
    async with backend(random_model(architecture), n_parallel=1) as engine:
        await ask_with(engine, turns(LONG, max_tokens=1))
        before = engine._engine.computed
        text, done = await ask_with(engine, turns(LONG))
        assert engine._engine.computed - before == done.usage.completion_tokens - 1
    assert done.usage.cached_tokens == done.usage.prompt_tokens
    async with backend(random_model(architecture), n_parallel=1) as fresh:
        assert (await ask_with(fresh, turns(LONG)))[0] == text


@pytest.mark.parametrize(
    ("architecture", "unified"), [("mamba", False), ("jamba", False), ("jamba", True), ("cohere2", False)]
)
async def test_a_history_that_is_written_in_another_way_begins_at_the_last_user_message(
    architecture: str, unified: bool
) -> None:
    """A template may do this if it drops the thinking of earlier turns."""
    options = {"n_parallel": 2, "kv_unified": unified}
    path = random_model(architecture)
    async with backend(path, **options) as engine:
        await ask_with(engine, turns(LONG, "Yes.", "And then?"))
        later = turns(LONG, "Yes.", "And then?", "Something else than it said.", "Go on.")
        text, done = await ask_with(engine, later)
        fewer = turns(LONG, "No.", "And then?")
        _, other = await ask_with(engine, fewer)
    assert done.usage.prompt_tokens - done.usage.cached_tokens < 60
    # The head up to the first user message is there for other conversations.
    assert other.usage.cached_tokens > 100
    async with backend(path, **options) as fresh:
        assert (await ask_with(fresh, later))[0] == text


@pytest.mark.parametrize("architecture", RECURRENT)
async def test_conversations_with_one_head_compute_it_once(architecture: str) -> None:
    asked = [turns(f"{thing} {OTHER}") for thing in ("Rivers.", "Trains.", "Salt.")]
    async with backend(random_model(architecture), n_parallel=3) as engine:
        answers = await asyncio.gather(*(ask_with(engine, request) for request in asked))
        assert sorted(done.usage.cached_tokens > 100 for _, done in answers) == [False, True, True]
    for (text, _), request in zip(answers, asked, strict=True):
        async with backend(random_model(architecture), n_parallel=1) as fresh:
            assert (await ask_with(fresh, request))[0] == text


@pytest.mark.parametrize("architecture", RECURRENT)
async def test_checkpoints_come_back_from_memory_with_their_sequence(architecture: str) -> None:
    asked = [turns(f"{n}. {text}") for n, text in enumerate((LONG, OTHER, LONG))]
    async with backend(random_model(architecture), n_parallel=1) as engine:
        first = [await ask_with(engine, request) for request in asked]
        for request, (text, done) in zip(asked, first, strict=True):
            again, repeated = await ask_with(engine, request)
            assert again == text
            assert repeated.usage.cached_tokens == done.usage.prompt_tokens - NEAR_END


async def test_checkpoints_take_no_more_than_the_budget() -> None:
    async with backend(random_model("jamba"), n_parallel=2, cache_mib=0) as engine:
        text, _ = await ask_with(engine, turns(LONG))
        again, done = await ask_with(engine, turns(LONG))
        assert again == text
        assert done.usage.cached_tokens == 0
        assert done.cache is not None
        assert done.cache.held_bytes == 0


async def test_a_request_abandoned_in_its_prompt_can_be_repeated() -> None:
    request = turns(LONG * 4)
    path = random_model("jamba")
    async with backend(path, n_parallel=1, n_ctx=4096, n_batch=64) as engine:
        stream = await engine.generate(request)
        await until(lambda: engine.pulse().steps >= 4)
        stream.close()
        text, _ = await ask_with(engine, request)
    async with backend(path, n_parallel=1, n_ctx=4096, n_batch=64) as fresh:
        assert (await ask_with(fresh, request))[0] == text


async def test_files_leave_the_memory_of_checkpoints_to_others() -> None:
    """What is in a file needs no memory but for its tokens."""
    held = []
    for files in (False, True):
        async with backend(random_model("jamba"), n_parallel=1, cache_mib=1) as engine:
            if files:
                engine._engine.open_files(1)
            for n in range(12):
                _, done = await ask_with(engine, turns(f"{n} {LONG}"))
                assert done.cache is not None
                if files:
                    await until(lambda: engine._engine.leaving() is not None)
                    engine._engine.file_saved(n + 1, [])
        held.append(done.cache.held_bytes)
    assert held[0] == held[1] > 0
