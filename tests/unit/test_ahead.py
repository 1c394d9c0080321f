"""The next prompt of a conversation, computed ahead: it is in the cache, with the changes that the template
makes to earlier thinking."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from inferd.engine.events import Done, Thinking
from inferd.engine.local import power
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.engine.requests import Message
from tests.requests import generate_request
from tests.unit.test_conversation import TEMPLATES
from tests.unit.test_llamacpp import backend

QWEN3 = (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text("utf-8")
TEXT = "The answer is long enough that a client would wait for it. " * 10
ANSWER = f'root ::= "<think>\\nI think.\\n</think>\\n\\n{TEXT.strip()}"'
ASKED = generate_request(
    messages=(Message("user", "What is the answer?"),),
    max_tokens=1000,
    temperature=0.0,
    typed=True,
    grammar=ANSWER,
)
NEXT = replace(
    ASKED,
    messages=(
        *ASKED.messages,
        Message("assistant", TEXT.strip(), thinking="I think."),
        Message("user", "And the next one?"),
    ),
)


async def done(engine: LlamaCpp, request: object) -> Done:
    thought = False
    async for event in await engine.generate(request):  # type: ignore[arg-type]
        thought = thought or isinstance(event, Thinking)
        if isinstance(event, Done):
            assert thought
            assert event.stop_reason == "end"
            return event
    raise AssertionError("the stream ended without Done")


async def new_tokens(engine: LlamaCpp) -> int:
    """The tokens of the next prompt that are not cached."""
    usage = (await done(engine, NEXT)).usage
    return usage.prompt_tokens - usage.cached_tokens


@pytest.fixture(autouse=True)
def no_battery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd.engine.local.llamacpp.supplies", lambda: power.Supplies(tmp_path))


async def test_only_the_new_turn_is_left_to_compute() -> None:
    left = {}
    for most in (0, 100, 8192):
        async with backend(n_parallel=2, n_ctx=2048, chat_template=QWEN3, ahead_tokens=most) as engine:
            await done(engine, ASKED)
            assert await engine._ahead.computed() == (most > 0)
            left[most] = await new_tokens(engine)
    assert left[0] > 140
    assert left[8192] < 25
    assert 25 < left[100] <= left[0] - 100


async def test_kept_thinking_leaves_nothing_to_compute_ahead() -> None:
    async with backend(
        n_parallel=1, n_ctx=2048, chat_template=QWEN3, ahead_tokens=8192, keep_thinking=True
    ) as engine:
        await done(engine, ASKED)
        assert not await engine._ahead.computed()
        assert await new_tokens(engine) < 25


async def test_a_request_ends_the_work() -> None:
    async with backend(
        n_parallel=1, n_batch=16, n_ctx=2048, chat_template=QWEN3, ahead_tokens=8192
    ) as engine:
        await done(engine, ASKED)
        plain = await done(engine, ASKED)
        assert plain.usage.cached_tokens == plain.usage.prompt_tokens
        work = engine._ahead._work
        assert work is not None
        stream = await engine.generate(NEXT)
        await asyncio.wait((work,))
        assert work.cancelled()
        async for event in stream:
            if isinstance(event, Done):
                assert event.stop_reason == "end"


async def test_not_on_battery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, status: str, **more: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        for file, text in {"status": status, **more}.items():
            (tmp_path / name / file).write_text(text + "\n")

    write("BAT0", "Charging")
    write("mouse", "Discharging", scope="Device")
    (tmp_path / "AC").mkdir()
    found = power.Supplies(tmp_path)
    assert not found.on_battery()
    assert not power.Supplies(tmp_path / "none").on_battery()
    monkeypatch.setattr("inferd.engine.local.llamacpp.supplies", lambda: found)
    async with backend(n_parallel=1, n_ctx=2048, chat_template=QWEN3, ahead_tokens=8192) as engine:
        write("BAT0", "Discharging")
        await done(engine, ASKED)
        assert not await engine._ahead.computed()
    found.close()
