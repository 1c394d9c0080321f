"""Speculative decoding: the policy with simulated costs, and equal answers with several tokens per step."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from inferd.engine.events import Done, DraftUse
from inferd.engine.local._llama import Drafter, Model, ThreadGovernor
from tests.unit.test_llamacpp import answer, ask, backend, load, read
from tests.unit.test_schemas import load_model

TEXT = [11, 12, 13, 14, 15, 16, 17, 18]
PERSON = {"first_name": {"type": "string"}, "family_name": {"type": "string"}, "age": {"type": "integer"}}
SCHEMA = json.dumps({"type": "object", "properties": PERSON, "required": list(PERSON)})


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


def steps_cost(*millis: float) -> ThreadGovernor:
    """Simulates the times of steps of 1, 2, … rows."""
    governor = ThreadGovernor(1, True, len(millis))
    for rows, cost in enumerate(millis, 1):
        governor.measured(0, rows, 0, int(cost * 1000))
    return governor


FLAT = [10.0] * 20
STEEP = [10.0 * rows for rows in range(1, 21)]


def test_repeated_text_is_drafted_from_its_earlier_place(model: Model) -> None:
    drafter = Drafter(model)
    assert drafter.look([*TEXT, 99]) == []
    assert drafter.look([*TEXT, 99, 11, 12, 13])[:5] == [14, 15, 16, 17, 18]


def test_the_longest_match_is_followed_and_a_shorter_later_one_is_not(model: Model) -> None:
    tokens = [1, 11, 12, 13, 50, 2, 11, 12, 13, 60, 1, 11, 12, 13]
    assert Drafter(model).look(tokens)[:1] == [50]


def test_a_repetition_is_drafted_beyond_its_end(model: Model) -> None:
    assert Drafter(model).look([5, 6, 7, 5, 6, 7, 5])[:6] == [6, 7, 5, 6, 7, 5]


def test_a_draft_ends_before_the_end_of_the_answer_and_before_media(model: Model) -> None:
    end = model.tokens(b"x")[0]
    control = 2  # <|im_end|>
    assert Drafter(model).look([11, 12, 13, end, control, 14, 11, 12, 13]) == [end]
    assert Drafter(model).look([11, 12, 13, end, -1, 14, 11, 12, 13]) == [end]


def test_forced_tokens_go_first(model: Model) -> None:
    assert Drafter(model).look([11, 12, 13, 14, 11, 12, 13], [7, 8]) == [7, 8]


def test_drafts_are_as_long_as_they_speed_up_a_step(model: Model) -> None:
    drafter = Drafter(model)
    drafter.look(TEXT, TEXT)
    assert drafter.worth(steps_cost(*FLAT), 1, 1, 15) == len(TEXT)
    assert drafter.worth(steps_cost(*FLAT), 1, 1, 3) == 3
    assert drafter.worth(steps_cost(*STEEP), 1, 1, 15) == 0
    # Four rows cost twice as much as one: drafts pay as a whole but not in parts.
    assert drafter.worth(steps_cost(10, 19, 20, 20, 90, 90, 90, 90, 90), 1, 1, 15) == 3


def test_nothing_is_drafted_before_a_plain_step_was_measured(model: Model) -> None:
    drafter = Drafter(model)
    drafter.look(TEXT, TEXT)
    assert drafter.worth(ThreadGovernor(1, True, 20), 1, 1, 15) == 0


def test_drafts_shrink_with_the_sequences_and_slow_none_of_them(model: Model) -> None:
    drafter = Drafter(model)
    drafter.look(TEXT, TEXT)
    assert [drafter.worth(steps_cost(*FLAT), n, n, 15) for n in (1, 2, 4, 8, 16)] == [8, 7, 3, 1, 0]
    assert [drafter.promising(n, 15) for n in (2, 4, 8, 16)] == [6, 3, 1, 0]
    # Twelve tokens for two thirds of their time would still make the neighbour wait.
    assert drafter.worth(steps_cost(*[10 + rows for rows in range(20)]), 2, 2, 15) == 0


def test_rejected_drafts_stop_and_return_when_they_would_be_accepted(model: Model) -> None:
    rng = random.Random(1)
    drafter, tokens = Drafter(model), [*range(100, 140)]
    for _ in range(60):  # three known tokens, and another one than the time before
        start = rng.randrange(30)
        for token in (100 + start, 101 + start, 102 + start, rng.randrange(1000, 9000)):
            drafter.look(tokens)
            tokens.append(token)
            drafter.came(tokens)
    tokens += [100, 101, 102]
    assert drafter.look(tokens)
    assert drafter.promising(1, 15) == 0
    for token in [*range(103, 140), *range(100, 140)]:
        tokens.append(token)
        drafter.came(tokens)
        drafter.look(tokens)
    assert drafter.promising(1, 15) > 0


def test_the_cost_of_a_step_is_measured_again_after_a_while() -> None:
    governor = steps_cost(10, 20, 30)
    assert governor.usual(3) == 30_000
    for _ in range(600):
        governor.measured(0, 1, 0, 10_000)
    assert governor.usual(3) < 30_000
    assert governor.usual(1) == 10_000


CASES: dict[str, dict[str, object]] = {
    "schema": {"json_schema": SCHEMA},
    "stop": {"json_schema": SCHEMA, "stop": ("family",)},
    "penalty": {"json_schema": SCHEMA, "repeat_penalty": 1.1},
    "repetition": {"top_k": 2},
}


async def test_a_seed_draws_the_same_text_with_drafts(tiny_llama: Path) -> None:
    answers: dict[str, dict[tuple[str, int], tuple[str, Done]]] = {}
    for drafts in ("off", "on"):
        engine = await asyncio.to_thread(load, tiny_llama, n_parallel=1, drafts=drafts)
        await engine.start()
        answers[drafts] = {}
        for name, options in CASES.items():
            for seed in (1, 2):
                asked = ask("Anything.", 60, seed=seed, **{"temperature": 1.0, **options})
                answers[drafts][name, seed] = await read(await engine.generate(asked))
        await engine.close()
    for case, (text, done) in answers["on"].items():
        plain, without = answers["off"][case]
        assert (text, done.stop_reason) == (plain, without.stop_reason), case
        assert done.usage.completion_tokens == without.usage.completion_tokens
        assert without.drafts == DraftUse(0, 0)
        assert done.drafts is not None
        assert done.drafts.accepted > 0, case


async def test_the_real_model_says_the_same_under_a_schema() -> None:
    texts = []
    for drafts in ("off", "on"):
        async with backend(n_parallel=1, drafts=drafts) as engine:
            text, done = await answer(engine, "Invent a person.", 60, json_schema=SCHEMA)
            texts.append(text)
    assert texts[0] == texts[1]
    assert done.drafts is not None
    assert done.drafts.accepted >= 4


async def test_rejected_tokens_leave_nothing_in_the_cache() -> None:
    # A cell that stays behind makes the next step of its sequence fail.
    asked = "Repeat: " + "one two three four, one two three five, " * 4
    rejected, seed = 0, 0
    async with backend(n_parallel=1, drafts="on") as engine:
        while not rejected:
            seed += 1
            _, done = await answer(engine, asked, 40, seed=seed, temperature=1.3)
            assert done.stop_reason in ("length", "end")
            assert done.drafts is not None
            rejected = done.drafts.drafted - done.drafts.accepted
