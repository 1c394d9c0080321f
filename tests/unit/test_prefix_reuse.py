"""The prefix cache in the token loop, on the real model: reuse, and unchanged answers."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from inferd.engine.backend import Stream
from inferd.engine.events import Done
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.requests import GenerateRequest, Message
from tests.in_process import until
from tests.tiny_llama import VOCABULARY
from tests.unit.test_llamacpp import answer, ask, backend, read

LONG = "Here is a list of things to remember: " + ", ".join(f"thing {n}" for n in range(60)) + ". "
OTHER = "A story: " + " ".join(f"Then {name} went home." for name in ("Ann", "Bob", "Cid", "Dee") * 12)


async def cold(request: GenerateRequest, **options: object) -> str:
    """The answer of an engine with an empty cache."""
    async with backend(n_parallel=1, **options) as fresh:
        return (await ask_with(fresh, request))[0]


async def end_of(stream: Stream) -> Done:
    *_, done = [event async for event in stream]
    assert isinstance(done, Done)
    return done


async def ask_with(engine: LlamaCpp, request: GenerateRequest) -> tuple[str, Done]:
    return await read(await engine.generate(request))


@pytest.mark.parametrize("unified", [False, True], ids=["separate", "unified"])
@pytest.mark.parametrize("seed", [None, 7], ids=["greedy", "seeded"])
async def test_the_same_request_again_computes_only_the_answer_and_says_the_same(
    unified: bool, seed: int | None
) -> None:
    request = ask(LONG) if seed is None else ask(LONG, temperature=1.0, seed=seed)
    async with backend(n_parallel=2, kv_unified=unified) as engine:
        first, done = await ask_with(engine, request)
        assert done.usage.cached_tokens == 0
        assert done.cache is not None
        assert done.cache.miss == "first"
        before = engine._engine.computed
        again, repeated = await ask_with(engine, request)
        # The first token needs no step, and the last one is in no step.
        assert engine._engine.computed - before == repeated.usage.completion_tokens - 1
    assert again == first
    assert repeated.usage.prompt_tokens == done.usage.prompt_tokens
    assert repeated.usage.cached_tokens == done.usage.prompt_tokens
    assert repeated.cache is not None
    assert repeated.cache.miss == ""


async def test_the_same_prompt_is_answered_by_the_settings_of_each_request() -> None:
    """Each engine's second request takes the first token from the kept logits."""
    asked = [
        ask(LONG, temperature=1.5, seed=11),
        ask(LONG, frame=None, logprobs=5),
        ask(LONG, repeat_penalty=1.5),
        replace(ask(LONG), json_schema='{"enum": ["left", "right"]}'),
        ask(LONG, 1),
    ]
    for request in asked:
        async with backend(n_parallel=1) as engine:
            await answer(engine, LONG)
            done = await end_of(await engine.generate(request))
        assert done.usage.cached_tokens == done.usage.prompt_tokens
        async with backend(n_parallel=1) as fresh:
            alone = await end_of(await fresh.generate(request))
        assert (done.content, done.logprobs) == (alone.content, alone.logprobs)


async def test_equal_requests_at_once_compute_their_prompt_once() -> None:
    async with backend(n_parallel=3) as engine:
        answers = await asyncio.gather(*(answer(engine, LONG) for _ in range(3)))
        computed = engine._engine.computed
    (text, done), *_ = answers
    assert [each for each, _ in answers] == [text] * 3
    assert computed == done.usage.prompt_tokens + 3 * (done.usage.completion_tokens - 1)


@pytest.mark.parametrize("prompt", [LONG, "Hi"])
async def test_another_token_in_the_prompt_is_computed(prompt: str) -> None:
    for other in (prompt + "!", prompt[:-1], "x" + prompt[1:]):
        async with backend(n_parallel=1) as engine:
            await answer(engine, prompt)
            text, done = await answer(engine, other)
            assert done.usage.cached_tokens <= done.usage.prompt_tokens - 2
        assert text == await cold(ask(other))


async def test_kept_logits_count_in_the_budget() -> None:
    async with backend(n_parallel=1) as engine:
        _, done = await answer(engine, LONG)
        assert done.cache is not None
        assert done.cache.held_bytes == 4 * VOCABULARY
    async with backend(n_parallel=1, cache_mib=0) as engine:
        await answer(engine, LONG)
        _, done = await answer(engine, LONG)
        assert done.usage.cached_tokens == done.usage.prompt_tokens - 2
        assert done.cache is not None
        assert done.cache.held_bytes == 0


async def test_a_conversation_computes_only_new_tokens() -> None:
    async with backend(n_parallel=2) as engine:
        text, done = await answer(engine, LONG, 40)
        history = (Message("user", LONG), Message("assistant", text), Message("user", "Go on."))
        _, second = await ask_with(engine, replace(ask("", 8), messages=history))
    held = done.usage.prompt_tokens + done.usage.completion_tokens
    # Everything in the slot, including the tokens of the answer as they were generated.
    assert held - 2 <= second.usage.cached_tokens <= held


async def test_an_opted_out_request_takes_nothing_and_leaves_nothing() -> None:
    async with backend(n_parallel=1) as engine:
        await answer(engine, LONG)
        _, out = await ask_with(engine, replace(ask(LONG), cache=False))
        assert (out.usage.cached_tokens, out.cache and out.cache.miss) == (0, "opted out")
    async with backend(n_parallel=1, cache_mib=0) as engine:
        await ask_with(engine, replace(ask(LONG), cache=False))
        _, after = await answer(engine, LONG)
        assert after.usage.cached_tokens == 0


async def test_users_never_share() -> None:
    async with backend(n_parallel=2) as engine:
        await ask_with(engine, replace(ask(LONG), scope="unix:1"))
        _, other = await ask_with(engine, replace(ask(LONG), scope="unix:2"))
        assert (other.usage.cached_tokens, other.cache and other.cache.miss) == (0, "other user")
        _, own = await ask_with(engine, replace(ask(LONG), scope="unix:1"))
        assert own.usage.cached_tokens == own.usage.prompt_tokens


@pytest.mark.parametrize("unified", [False, True], ids=["separate", "unified"])
async def test_simultaneous_requests_compute_their_common_head_once(unified: bool) -> None:
    asked = [ask(LONG + tail, 12) for tail in ("Name the first.", "Name the last.", "How many are there?")]
    async with backend(n_parallel=3, kv_unified=unified) as engine:
        answers = await asyncio.gather(*(ask_with(engine, request) for request in asked))
    computed = [done.usage.prompt_tokens - done.usage.cached_tokens for _, done in answers]
    whole = answers[0][1].usage.prompt_tokens
    assert sum(computed) < whole + 2 * 40
    if unified:
        return  # with a shared KV buffer, text depends on the concurrent sequences
    for (text, _), request in zip(answers, asked, strict=True):
        assert text == await cold(request)


async def test_more_conversations_than_slots_come_back_from_memory() -> None:
    asked = [ask(f"{n}. {text}", 12) for n, text in enumerate((LONG, OTHER, LONG, OTHER))]
    async with backend(n_parallel=1) as engine:
        first = [await ask_with(engine, request) for request in asked]
        again = [await ask_with(engine, request) for request in asked]
    for (text, done), (text_again, done_again) in zip(first, again, strict=True):
        assert text_again == text
        assert done_again.usage.cached_tokens == done.usage.prompt_tokens
    assert again[-1][1].cache is not None
    assert 0 < again[-1][1].cache.held_bytes <= 1024 << 20


async def test_without_memory_for_states_the_reason_is_eviction() -> None:
    async with backend(n_parallel=1, cache_mib=0) as engine:
        for text in (LONG, OTHER):
            await answer(engine, text, 4)
        _, done = await answer(engine, LONG, 4)
    assert done.cache == replace(done.cache, miss="evicted", held_bytes=0)
    assert done.usage.cached_tokens < 32


@pytest.mark.parametrize("session", ["", "s"])
async def test_a_named_conversation_keeps_its_slot(session: str) -> None:
    named = replace(ask(LONG, 4), session=session)
    async with backend(n_parallel=2, cache_mib=0) as engine:
        await ask_with(engine, named)
        for text in (OTHER, OTHER.replace("home", "away").replace("story", "tale")):
            await answer(engine, f"{text[8:40]} {text}", 4)
        _, done = await ask_with(engine, named)
    assert (done.usage.cached_tokens == done.usage.prompt_tokens - 2) == bool(session)


async def test_a_request_abandoned_in_its_prompt_keeps_the_computed_prefix() -> None:
    request = ask(LONG * 4, 4)
    async with backend(n_parallel=1, n_ctx=4096, n_batch=64) as engine:
        stream = await engine.generate(request)
        await until(lambda: engine.pulse().steps >= 4)
        stream.close()
        text, done = await ask_with(engine, request)
    assert 64 <= done.usage.cached_tokens < done.usage.prompt_tokens
    assert text == await cold(request, n_ctx=4096, n_batch=64)
