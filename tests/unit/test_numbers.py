"""The numbers that llama.cpp's `common` prints through C++ streams in the linked module.

If a C++ stream finds no facet for numbers, it drops the number and all further text without an error.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from inferd.engine.local import _llama
from inferd.errors import InvalidRequest
from tests.cases import cases
from tests.tiny_llama import write_llama
from tests.unit.test_conversation import TEMPLATES
from tests.unit.test_llamacpp import answer, backend, load_model

# A template that renders one of these words must render it after any other text.
WORDS = ("first_word", "second_word", "third_word", "fourth_word", "fifth_word", "last_word")


@pytest.fixture(scope="module")
def model() -> _llama.Model:
    return load_model()


def render(model: _llama.Model, source: str, conversation: dict[str, object]) -> str:
    prompt = _llama.Templates(model, source).render(json.dumps(conversation).encode())
    return model.text(prompt.tokens).decode()


def conversation(integer: object, real: object) -> dict[str, object]:
    """Two tools, one with nested objects, and a call, with numbers (or strings) between the words."""
    nested = {"type": "object", "properties": {"deep": {"type": "integer", "default": integer}}}
    tools = [
        {
            "name": "first_word",
            "description": "one",
            "parameters": {
                "type": "object",
                "properties": {
                    "count": {"type": "integer", "default": integer, "description": "second_word"},
                    "inner": nested,
                    "rate": {"type": "number", "default": real, "description": "third_word"},
                },
            },
        },
        {"name": "fourth_word", "description": "two", "parameters": {"type": "object", "properties": {}}},
    ]
    arguments = {"count": integer, "inner": {"deep": integer}, "rate": real, "name": "fifth_word"}
    call = {"name": "first_word", "arguments": json.dumps(arguments)}
    return {
        "messages": [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "abcdefghi", "type": "function", "function": call}],
            },
            {"role": "tool", "name": "first_word", "tool_call_id": "abcdefghi", "content": "fine"},
            {"role": "assistant", "content": "Done"},
            {"role": "user", "content": "last_word"},
        ],
        "tools": [{"type": "function", "function": tool} for tool in tools],
    }


def test_a_template_prints_numbers(model: _llama.Model) -> None:
    source = (
        "{{ messages[0].content }}"
        "|{{ {'a': 42, 'b': -7, 'c': 0.25, 'd': [1, {'e': 9007199254740991}]} | tojson }}"
        "|{{ 12 }}|{{ 1.5 }}|{{ 7 ~ 'x' }}|{{ [3, 4] | join(',') }}|{{ strftime_now('%Y') | length }}|end"
    )
    text = render(model, source, {"messages": [{"role": "user", "content": "hi"}], "text_only": True})
    assert text.endswith(
        'hi|{"a": 42, "b": -7, "c": 0.25, "d": [1, {"e": 9007199254740991}]}|12|1.5|7x|3,4|4|end'
    )


@cases("path", sorted(TEMPLATES.glob("*.jinja")))
def test_numbers_cut_nothing_from_a_prompt(model: _llama.Model, path: Path) -> None:
    """A template renders tools and calls with numbers as completely as those with strings."""
    source = path.read_text("utf-8")
    try:
        strings = render(model, source, conversation("integer_value", "real_value"))
    except InvalidRequest:  # of this conversation, with numbers or strings
        with pytest.raises(InvalidRequest):
            render(model, source, conversation(7919, 0.25))
        return
    numbers = render(model, source, conversation(7919, 0.25))
    assert [word for word in WORDS if word in strings] == [word for word in WORDS if word in numbers]
    assert numbers.count("7919") == strings.count("integer_value")
    assert numbers.count("0.25") == strings.count("real_value")


@pytest.mark.parametrize("family", ["3.1-8B", "3.2-3B", "3.3-70B"])
def test_a_prompt_of_llama_3_holds_the_date_of_today(model: _llama.Model, family: str) -> None:
    (path,) = TEMPLATES.glob(f"meta-llama-Llama-{family}-Instruct.jinja")
    before = datetime.now()
    text = render(model, path.read_text("utf-8"), {"messages": [{"role": "user", "content": "hi"}]})
    shown = text.partition("Today Date: ")[2].partition("\n")[0]
    days = [before, datetime.now()]
    assert shown in {day.strftime("%d %b %Y") for day in days}


BOUNDS = [
    {"minimum": 0},
    {"maximum": 0},
    {"minimum": 1, "maximum": 65535},
    {"minimum": -(2**53), "maximum": 2**53},
    *({"minimum": 10 ** (digits - 1)} for digits in range(1, 20)),
    *({"minimum": -(10 ** (digits - 1))} for digits in range(1, 20)),
    *({"maximum": 10**digits - 1} for digits in range(1, 20)),
    *({"maximum": -(10 ** (digits - 1))} for digits in range(1, 20)),
    *({"minimum": 10 ** (digits - 1), "maximum": 10**digits - 1} for digits in range(1, 19)),
]


async def test_an_integer_keeps_its_bounds(tmp_path: Path) -> None:
    async with backend(write_llama(tmp_path / "tiny.gguf")) as engine:
        for bounds in BOUNDS:
            schema = json.dumps({"type": "integer", **bounds})
            text, done = await answer(engine, "A number:", 40, json_schema=schema, temperature=1.5, seed=1)
            if done.stop_reason == "length":  # with one bound a number may be longer
                assert len(bounds) == 1
            else:
                assert done.stop_reason == "end"
                assert bounds.get("minimum", int(text)) <= int(text) <= bounds.get("maximum", int(text)), (
                    bounds
                )
