"""A draft model: its drafts never change an answer, and drafting stops where it does not save time."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inferd.cli import check_models
from inferd.config import sources
from inferd.config.entries import LlamaCppEntry, ModelSpec
from inferd.config.settings import Settings
from inferd.daemon import build
from inferd.daemon.directory import Directory
from inferd.engine.events import Done
from inferd.engine.local._llama import DraftEarnings, Drafter
from inferd.engine.local.llamacpp import LlamaCpp
from inferd.errors import ModelError
from inferd.serve.router import Router
from inferd.store.gguf import read_card
from tests.demo_model import demo_model
from tests.tiny_llama import random_llama
from tests.unit.test_drafts import TEXT
from tests.unit.test_llamacpp import ask, backend, read
from tests.unit.test_schemas import load_model

QUESTIONS = ("Say something.", "Say something else, and rather more of it.", "Count.")


@asynccontextmanager
async def drafting(draft: Path, **options: object) -> AsyncIterator[LlamaCpp]:
    """The random model with a draft model, which drafts whenever it is sure."""
    fd = os.open(draft, os.O_RDONLY)
    try:
        async with backend(draft_fd=fd, **{"drafts": "on", **options}) as engine:
            yield engine
    finally:
        os.close(fd)


async def answers(engine: LlamaCpp, **options: object) -> list[tuple[str, Done]]:
    """The answers to all questions, asked at once."""
    streams = [await engine.generate(ask(text, 40, **options)) for text in QUESTIONS]
    return list(await asyncio.gather(*map(read, streams)))


def texts(found: list[tuple[str, Done]]) -> list[tuple[str, str, int]]:
    return [(text, done.stop_reason, done.usage.completion_tokens) for text, done in found]


def accepted(found: list[tuple[str, Done]]) -> list[tuple[int, int]]:
    """The numbers of draft tokens computed and accepted, for each answer."""
    uses = [done.drafts for _, done in found if done.drafts is not None]
    assert len(uses) == len(found)
    return [(use.drafted, use.accepted) for use in uses]


def every_answer_had_drafts(found: list[tuple[str, Done]]) -> bool:
    """Whether each answer had accepted drafts.

    On a busy machine an answer may get none in time. The tests then repeat the request, until their time
    limit.
    """
    return all(right > 0 for _, right in accepted(found))


async def test_the_text_is_the_same_with_drafts_of_a_model_that_is_right_sometimes_or_never() -> None:
    async with backend() as engine:
        greedy, drawn = await answers(engine), await answers(engine, temperature=0.3, seed=5)
    for draft in (random_llama(), random_llama(1), random_llama(1, 8)):
        async with drafting(draft) as engine:
            while True:
                found = await answers(engine), await answers(engine, temperature=0.3, seed=5)
                assert [texts(each) for each in found] == [texts(greedy), texts(drawn)]
                if draft != random_llama() or every_answer_had_drafts(found[0]):
                    break


async def test_the_model_follows_the_answers_of_a_slot_through_other_questions() -> None:
    async with backend(n_parallel=1) as engine:
        plain = [await read(await engine.generate(ask(text, 12))) for text in QUESTIONS * 2]
    async with drafting(random_llama(), n_parallel=1) as engine:
        while True:
            found = [await read(await engine.generate(ask(text, 12))) for text in QUESTIONS * 2]
            assert texts(found) == texts(plain)
            if every_answer_had_drafts(found):
                break


async def test_a_model_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(ModelError, match="another vocabulary"):
        async with drafting(demo_model()):
            pass


async def test_without_drafts_the_model_is_not_loaded(tmp_path: Path) -> None:
    nothing = tmp_path / "no.gguf"
    nothing.write_bytes(b"no model")
    async with drafting(nothing, drafts="off") as engine:
        assert engine.ready()


def test_a_model_is_asked_where_nothing_else_is_more_often_right() -> None:
    drafter = Drafter(load_model(random_llama()))
    drafter.look([1, 2])
    assert drafter.unsure()
    assert drafter.take([14, 15]) == [14, 15]
    drafter.look(TEXT, TEXT)
    assert not drafter.unsure()
    drafter.look([5, 6, 7, 5, 6, 7])
    assert drafter.unsure()
    tokens = [5, 6, 7] * 20
    for end in range(6, len(tokens)):
        drafter.look(tokens[:end])
        drafter.came(tokens[: end + 1])
    drafter.look(tokens)
    assert not drafter.unsure()


def test_drafts_that_do_not_pay_pause_for_longer_each_time() -> None:
    earnings = DraftEarnings()
    pauses = []
    for _ in range(8):
        trial = 0
        while earnings.due():
            earnings.add(2.0, 1.0)
            trial += 1
        assert trial == 8
        pause = 1
        while not earnings.due():
            pause += 1
        pauses.append(pause)
    assert pauses == [32, 64, 128, 256, 512, 1024, 1024, 1024]
    for _ in range(100):
        assert earnings.due()
        earnings.add(1.0, 2.0)


def configured(tmp_path: Path, **keys: object) -> Settings:
    entry = {"kind": "llamacpp", "name": "m", "model_path": str(random_llama()), "n_ctx": 512, **keys}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"backends": [entry], "engine": {"drafts": "on", "threads": 1}}))
    return sources.load({"config": path}, {"HOME": str(tmp_path)})[0]


def entry_of(settings: Settings) -> LlamaCppEntry:
    (entry,) = settings.backends
    assert isinstance(entry, LlamaCppEntry)
    return entry


def test_an_entry_names_its_draft_model_or_the_file(tmp_path: Path) -> None:
    assert entry_of(configured(tmp_path, draft="small")).draft == ModelSpec(name="small")
    assert entry_of(configured(tmp_path, draft_path="/s.gguf")).draft == Path("/s.gguf")
    with pytest.raises(Exception, match="draft_path` exclude each other"):
        configured(tmp_path, draft="small", draft_path="/s.gguf")


async def test_an_entry_is_served_with_its_draft_model(tmp_path: Path) -> None:
    settings = configured(tmp_path, draft_path=str(random_llama()))
    made = await asyncio.to_thread(
        build.build_backend, settings, entry_of(settings), lambda phase, details: None, asyncio.Event()
    )
    try:
        await made.start()
        while not every_answer_had_drafts([await read(await made.generate(ask("Say something.", 20)))]):
            pass
    finally:
        await made.close()


def test_the_memory_of_a_draft_model_is_counted(tmp_path: Path) -> None:
    settings = configured(tmp_path, draft_path=str(random_llama(1)))
    settings = settings.replaced(backends=(entry_of(settings)._replace(preload=False),))
    directory = Directory(Router([]), settings)
    with random_llama().open("rb") as one, random_llama(1).open("rb") as other:
        whole, small = read_card(one.fileno()), read_card(other.fileno())
    both = directory.card_with_draft("m")
    assert both.memory_bytes(512, 2) == whole.memory_bytes(512, 2) + small.file_bytes + (
        small.kv_bytes_per_token * 512 * 2
    )
    directory.settings = settings.replaced(drafts="off")
    assert directory.card_with_draft("m") == whole


def test_doctor_compares_the_vocabularies(tmp_path: Path) -> None:
    def found(draft: Path) -> list[str]:
        settings = configured(tmp_path, draft_path=str(draft))
        return [f"{each.state}: {each.detail}" for each in check_models.models(settings)][1:]

    assert found(random_llama(1)) == [f"ok: {random_llama(1)} is readable"]
    assert found(demo_model()) == ["fail: the draft model of m has another vocabulary than its model"]
    (missing,) = found(tmp_path / "none.gguf")
    assert missing.startswith("fail: ")
