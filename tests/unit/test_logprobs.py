"""The probabilities of tokens, from the token loop up to its frames."""

from __future__ import annotations

import json
import math
from typing import Any

from inferd.engine.events import Done, Frames
from inferd.engine.requests import FrameTemplate, GenerateRequest
from tests.demo_model import demo_model
from tests.unit.test_llamacpp import ask, backend

FRAME = FrameTemplate(b'{"t":"', b"]}\n", b'","p":[')
PLAIN = FrameTemplate(b'{"t":"', b'"}\n')


async def told(engine: Any, request: GenerateRequest) -> tuple[list[dict[str, Any]], Done]:
    """The frames of an answer, and its end."""
    frames: list[dict[str, Any]] = []
    async for event in await engine.generate(request):
        if isinstance(event, Done):
            return frames, event
        assert isinstance(event, Frames)
        frames += map(json.loads, event.data.splitlines())
    raise AssertionError("the stream ended without Done")


def tokens_of(frames: list[dict[str, Any]], done: Done) -> list[dict[str, Any]]:
    rest: list[dict[str, Any]] = json.loads(b"[" + done.logprobs + b"]")
    return [token for frame in frames for token in frame["p"]] + rest


def text_of(tokens: list[dict[str, Any]]) -> bytes:
    return b"".join(bytes(token["bytes"]) for token in tokens)


async def test_a_greedy_token_is_the_likeliest_and_the_sums_are_of_probabilities() -> None:
    async with backend(demo_model(), n_parallel=1) as engine:
        plain, _ = await told(engine, ask("Name three rivers.", 12, frame=PLAIN))
        frames, done = await told(engine, ask("Name three rivers.", 12, frame=FRAME, logprobs=20))
        assert [frame["t"] for frame in frames] == [frame["t"] for frame in plain]
        tokens = tokens_of(frames, done)
        assert len(tokens) == done.usage.completion_tokens == 12
        assert text_of(tokens) == "".join(frame["t"] for frame in frames).encode()
        for token in tokens:
            best = token.pop("top_logprobs")
            assert token == best[0]
            assert len({tuple(other["bytes"]) for other in best}) == 20
            values = [other["logprob"] for other in best]
            assert values == sorted(values, reverse=True)
            assert 0.3 < sum(map(math.exp, values)) <= 1 + 1e-6
        assert max(math.exp(token["logprob"]) for token in tokens) > 0.5

        # They are the model's own, before any step of the sampler changes them.
        warm = {"temperature": 2.0, "top_k": 1, "presence_penalty": 1e-30}
        others, end = await told(engine, ask("Name three rivers.", 12, frame=FRAME, logprobs=0, **warm))
        assert [token["logprob"] for token in tokens_of(others, end)] == [
            token["logprob"] for token in tokens
        ]
        assert not any(token["top_logprobs"] for token in tokens_of(others, end))


async def test_a_token_that_the_model_would_not_choose_has_its_own_probability() -> None:
    """A grammar decides the token; the reported probability is the model's."""
    async with backend() as engine:
        frames, done = await told(
            engine, ask("Anything.", 8, frame=FRAME, logprobs=20, grammar='root ::= "0123"')
        )
        tokens = tokens_of(frames, done)
        assert text_of(tokens) == b"0123"
        assert all(token["logprob"] < 0 for token in tokens)
        assert all(token["logprob"] <= token["top_logprobs"][0]["logprob"] for token in tokens)


async def test_an_answer_without_frames_has_all_of_them_at_its_end() -> None:
    async with backend() as engine:
        frames, streamed = await told(engine, ask("Anything.", 8, frame=FRAME, logprobs=1))
        none, whole = await told(engine, ask("Anything.", 8, frame=None, logprobs=1))
        assert not none
        assert tokens_of([], whole) == tokens_of(frames, streamed)
        _, without = await told(engine, ask("Anything.", 8, frame=None))
        assert without.logprobs == b""
        assert without.content == whole.content


async def test_tokens_of_a_stop_string_are_not_reported() -> None:
    async with backend() as engine:
        grammar = 'root ::= "abc" "\\n\\n" "END" "x"*'
        frames, done = await told(
            engine, ask("Anything.", 30, frame=FRAME, logprobs=0, stop=("END",), grammar=grammar)
        )
        assert done.stop_reason == "stop"
        assert text_of(tokens_of(frames, done)) == b"abc\n\n"
        assert "".join(frame["t"] for frame in frames) == "abc\n\n"


async def test_bytes_of_a_character_are_reported_one_by_one() -> None:
    async with backend() as engine:
        for most in (30, 2):
            frames, done = await told(
                engine, ask("Anything.", most, frame=FRAME, logprobs=0, grammar='root ::= "\U0001f9ff"')
            )
            tokens = tokens_of(frames, done)
            assert "\U0001f9ff".encode().startswith(text_of(tokens))
            assert all(token["token"] == "\ufffd" for token in tokens)
            assert len(tokens) == done.usage.completion_tokens > 1
