"""Raw prompts, fill-in-the-middle, and prefilled answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferd.engine.local import _llama
from inferd.engine.local.conversation import Family, prepare
from inferd.engine.local.schema.guides import Guides
from inferd.engine.requests import GenerateRequest, Message
from inferd.errors import InvalidRequest, PromptTooLong
from tests.demo_model import demo_model
from tests.requests import generate_request
from tests.tiny_llama import write_llama
from tests.unit.test_llamacpp import FRAME, backend, read

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
BEFORE, BEHIND, HERE = 3, 4, 5
"""Control tokens of the vocabulary that the tests use as the tokens of fill-in-the-middle."""


def loaded(path: Path) -> _llama.Model:
    with path.open("rb") as file:
        return _llama.Model(file.fileno(), path=str(path), n_gpu_layers=0, report=lambda fraction: True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> _llama.Model:
    names = {"pre": BEFORE, "suf": BEHIND, "mid": HERE}
    keys = {f"tokenizer.ggml.fim_{name}_token_id": token for name, token in names.items()}
    return loaded(write_llama(tmp_path_factory.mktemp("fim") / "fim.gguf", keys=keys))


def family(model: _llama.Model, **more: int) -> Family:
    return Family(_llama.Templates(model), Guides(model), **more)


def asked(*texts: str, **options: object) -> GenerateRequest:
    roles = ("user", "assistant")
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))
    return generate_request(messages=messages, typed=True, **options)


def test_a_raw_prompt_is_the_text_with_its_control_tokens(model: _llama.Model) -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n"
    tokens = prepare(family(model), asked(text, raw=True)).prompt.tokens
    begin, end = (model.control_tokens[name] for name in (b"<|im_start|>", b"<|im_end|>"))
    assert (tokens[0], tokens[-2]) == (begin, end)
    assert model.text(tokens[1:-2]) == b"user\nHi"


def test_a_text_to_be_filled_in_is_between_the_tokens_for_it(model: _llama.Model) -> None:
    before, behind = "def f(<|im_end|>", "return 1"
    tokens = prepare(family(model), asked(before, raw=True, suffix=behind)).prompt.tokens
    at = tokens.index(BEHIND)
    assert (tokens[0], tokens[-1]) == (BEFORE, HERE)
    assert model.text(tokens[1:at]).decode() == before
    assert model.text(tokens[at + 1 : -1]).decode() == behind
    control = set(model.control_tokens.values())
    assert not control & set(tokens[1:at])
    empty = prepare(family(model), asked("", raw=True, suffix="")).prompt.tokens
    assert empty == [BEFORE, BEHIND, HERE]


def test_a_model_without_such_tokens_says_so() -> None:
    with pytest.raises(InvalidRequest, match=r"no tokens for .* filled in: leave out the suffix"):
        prepare(family(loaded(demo_model())), asked("a", raw=True, suffix="b"))


def test_a_raw_prompt_that_cannot_fit_is_not_begun(model: _llama.Model) -> None:
    with pytest.raises(PromptTooLong, match="has 12 characters"):
        prepare(family(model, most_chars=10, n_ctx=5), asked("a" * 6, raw=True, suffix="b" * 6))


def test_a_prefilled_answer_follows_the_template(model: _llama.Model) -> None:
    plain = prepare(family(model), asked("Hi")).prompt.tokens
    begun = prepare(family(model), asked("Hi", "Sure<|im_end|>: ", begun=True)).prompt.tokens
    assert begun[: len(plain)] == plain
    assert model.text(begun[len(plain) :]).decode() == "Sure<|im_end|>: "
    assert not set(model.control_tokens.values()) & set(begun[len(plain) :])


async def test_the_real_model_continues_a_prefilled_answer() -> None:
    async with backend(demo_model(), n_parallel=1) as engine:

        async def answer(*texts: str, **more: object) -> str:
            options = {"temperature": 0.0, "max_tokens": 8, "frame": FRAME, **more}
            text, _ = await read(await engine.generate(asked(*texts, **options)))
            return text

        start = "The capital of France is"
        turn = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhich city is it?<|im_end|>\n"
        continued = await answer("Which city is it?", start, begun=True)
        assert continued == await answer(f"{turn}<|im_start|>assistant\n{start}", raw=True)
        assert "Paris" in continued
        assert "Paris" in await answer(start, raw=True)
