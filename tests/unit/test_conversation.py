"""Conversations of many families: rendered with tools, and their answers parsed, whole and in chunks.

The templates are from llama.cpp's sources; the vocabulary is the demo model's, which is enough for text. Only
the demo model's own family also runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from inferd.engine.backend import Stream
from inferd.engine.events import Done, Event, Frames, Text, Thinking, ToolUse, Usage
from inferd.engine.local import _llama, generic_tools
from inferd.engine.local.conversation import Family, Reader, prepare
from inferd.engine.local.schema.guides import Guides
from inferd.engine.local.streams.typed_stream import TypedStream
from inferd.engine.requests import GenerateRequest, Message, Tool, ToolCall
from inferd.errors import InvalidRequest
from inferd.store.gguf import has_thinking
from inferd.wire import v2
from tests.cases import cases
from tests.requests import generate_request
from tests.unit.test_llamacpp import load_model

TEMPLATES = Path(__file__).parents[2] / "vendor/llama.cpp/models/templates"

WEATHER = Tool(
    "get_weather",
    "The weather of a city",
    '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"],'
    '"additionalProperties":false}',
)
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
HERMES = f"<tool_call>\n{CALL}\n</tool_call>"

# Family → an answer of its shape that calls the tool for Paris, after the thought "hmm" where it thinks.
ANSWERS = {
    "Qwen-Qwen2.5-7B-Instruct": HERMES,
    "Qwen-Qwen3-0.6B": f"<think>\nhmm\n</think>\n\n{HERMES}",
    "Qwen3-Coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>"
    "\n</function>\n</tool_call>",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": HERMES,
    "meta-llama-Llama-3.1-8B-Instruct": CALL.replace("arguments", "parameters"),
    "mistralai-Mistral-Nemo-Instruct-2407": f'[TOOL_CALLS][{CALL[:-1]}, "id": "123456789"}}]',
    "ibm-granite-granite-4.0": HERMES,
    "openai-gpt-oss-120b": "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant<|channel|>commentary"
    ' to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}',
    "moonshotai-Kimi-K2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
    "GLM-4.6": "<think>hmm</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>"
    "\n<arg_value>Paris</arg_value>\n</tool_call>",
    "MiniMax-M2": 'hmm\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n'
    '<parameter name="city">Paris'
    "</parameter>\n</invoke>\n</minimax:tool_call>",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|START_THINKING|>hmm<|END_THINKING|><|START_ACTION|>"
    '[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}}]<|END_ACTION|>',
    "ByteDance-Seed-OSS": "<seed:think>hmm</seed:think><seed:tool_call>\n<function=get_weather>\n"
    "<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
    "google-gemma-4-31B-it": "<|channel>thought\nhmm<channel|><|tool_call>call:get_weather"
    '{city:<|"|>Paris<|"|>}<tool_call|>',
    "HuggingFaceTB-SmolLM2-135M-Instruct": f"<tool_call>{CALL}",
}


@pytest.fixture(scope="module")
def model() -> _llama.Model:
    return load_model()


def templates(model: _llama.Model, family: str) -> Family:
    path = TEMPLATES / f"{family}.jinja"
    return Family(_llama.Templates(model, path.read_text("utf-8") if path.exists() else ""), guides(model))


@cache
def guides(model: _llama.Model) -> Guides:
    return Guides(model)


def request(*messages: Message, **options: Any) -> GenerateRequest:
    sampling = {"max_tokens": 120, "temperature": 0.0, "top_p": 0.95, "top_k": 64, "typed": True}
    turns = messages or (Message("user", "What is the weather in Paris?"),)
    return generate_request(messages=turns, **{**sampling, **options})


def read(reader: Reader, pieces: Sequence[str]) -> list[Event]:
    events: list[Event] = []
    for i, piece in enumerate(pieces):
        found = reader.feed(piece, last=i == len(pieces) - 1)
        assert found is not None
        events += found
    return events


def summary(events: list[Event]) -> tuple[str, str, list[tuple[str, Any]]]:
    thinking = "".join(event.text for event in events if isinstance(event, Thinking))
    text = "".join(event.text for event in events if isinstance(event, Text))
    calls = [
        (event.call.name, orjson.loads(event.call.arguments))
        for event in events
        if isinstance(event, ToolUse)
    ]
    return thinking.strip(), text.strip(), calls


@cases("family", ANSWERS)
def test_a_family_gets_its_tools_and_its_call_is_read_back(model: _llama.Model, family: str) -> None:
    of_family = templates(model, family)
    answer = ANSWERS[family]
    expected = ("hmm" if "hmm" in answer else "", "", [("get_weather", {"city": "Paris"})])
    prepared = prepare(of_family, request(tools=(WEATHER,)))
    assert prepared.reader is not None
    plain = prepare(of_family, request(thinking=False))
    assert len(prepared.prompt) > len(plain.prompt) + 20  # the tool is in the prompt
    assert summary(read(prepared.reader, [answer])) == expected
    bit_by_bit = prepare(of_family, request(tools=(WEATHER,))).reader
    assert bit_by_bit is not None
    assert summary(read(bit_by_bit, list(answer))) == expected


@cases("family", sorted(set(ANSWERS) - {"mistralai-Mistral-Nemo-Instruct-2407"}))
def test_calls_and_results_render_in_the_form_of_the_family(model: _llama.Model, family: str) -> None:
    call = ToolCall("abcdefghi", "get_weather", '{"city":"Paris"}')
    history = (
        Message("user", "What is the weather in Paris?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "sunny as in Cairo", tool_call_id=call.id),
        Message("user", "And tomorrow?"),
    )
    of_family = templates(model, family)
    with_call = prepare(of_family, request(*history, tools=(WEATHER,)))
    without = prepare(of_family, request(history[0], history[3], tools=(WEATHER,)))
    assert len(with_call.prompt) > len(without.prompt) + 8


PARIS = '{"city": "Paris", "days": 3}'
OWN_FORM = {
    "Qwen-Qwen2.5-7B-Instruct": f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>',
    "meta-llama-Llama-3.1-8B-Instruct": f'{{"name": "weather", "parameters": {PARIS}}}',
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n"
    "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    "GLM-4.6": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "mistralai-Mistral-Nemo-Instruct-2407": '[TOOL_CALLS][{"name": "weather", "arguments": '
    f'{PARIS}, "id": "abcdefghi"}}]',
}
DAYS = Tool(
    "weather",
    "The weather of a city",
    '{"type":"object","properties":{"city":{"type":"string"},'
    '"days":{"type":"integer","minimum":1,"maximum":7}},"required":["city","days"]}',
)


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("family", OWN_FORM)
def test_arguments_are_held_to_their_schema_within_the_form_of_the_family(
    model: _llama.Model, family: str, choice: str
) -> None:
    def guide() -> _llama.Guide:
        asked = request(tools=(DAYS,), tool_choice=choice, thinking=False)
        made = prepare(templates(model, family), asked).guide
        assert made is not None
        return made

    call = OWN_FORM[family]
    held = guide()
    assert follow(model, held, call)
    assert held.accepting
    assert not follow(model, guide(), call.replace("3", "8"))
    assert not follow(model, guide(), call.replace("days", "months"))
    assert follow(model, guide(), "Let me look.") == (choice == "auto")


def follow(model: _llama.Model, guide: _llama.Guide, text: str) -> bool:
    """Whether an answer may continue with these tokens."""
    return all(guide.allows(token) and guide.accept(token) for token in model.tokens(text.encode()))


@pytest.mark.parametrize("call_id", ["tc-0123abcd", "a/ü"])
def test_ids_are_given_to_a_template_in_its_own_form(model: _llama.Model, call_id: str) -> None:
    nemo = templates(model, "mistralai-Mistral-Nemo-Instruct-2407")
    history = (
        Message("user", "What is the weather in Paris?"),
        Message("assistant", "", tool_calls=(ToolCall(call_id, "get_weather", '{"city":"Paris"}'),)),
        Message("tool", "sunny as in Cairo", tool_call_id=call_id),
    )
    prompt = model.text(prepare(nemo, request(*history, tools=(WEATHER,))).prompt.tokens).decode()
    shown = re.findall(r'"(?:call_)?id": "([^"]*)"', prompt)
    assert len(shown) == 2
    assert shown[0] == shown[1]
    assert re.fullmatch("[A-Za-z0-9]{9}", shown[0])


CALLED = ToolCall("abcdefghi", "get_weather", '{"city":"Paris"}')
TEXTS = [
    ("google-gemma-2-2b-it", (Message("system", "only the system speaks"),)),
    (
        "unsloth-mistral-Devstral-Small-2507",
        (
            Message("user", "a"),
            Message("assistant", "the answer", thinking="a thought"),
            Message("user", "b"),
        ),
    ),
    (
        "openai-gpt-oss-120b",
        (
            Message("user", "a"),
            Message("assistant", "the answer", thinking="a thought", tool_calls=(CALLED,)),
            Message("tool", "sunny", tool_call_id="abcdefghi"),
        ),
    ),
]


@pytest.mark.parametrize(
    ("family", "messages"), TEXTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_text_of_a_conversation_is_dropped(
    model: _llama.Model, family: str, messages: tuple[Message, ...]
) -> None:
    asked = request(*messages, tools=(WEATHER,) if "gpt" in family else ())
    prompt = model.text(prepare(templates(model, family), asked).prompt.tokens).decode()
    for message in messages:
        assert str(message.content) in prompt


def test_arrays_among_the_parameters_are_shown_where_llama_cpp_cannot_ask_for_their_items(
    model: _llama.Model,
) -> None:
    inner = {"type": "object", "properties": {"deep": {"type": "array", "items": {"type": "integer"}}}}
    properties = {
        "names": {"type": "array", "items": {"type": "string"}},
        "list": {"type": "array"},
        "in": inner,
    }
    schema = {"type": "object", "properties": properties, "required": ["names"]}
    tool = Tool("find", "Finds", orjson.dumps(schema).decode())
    prepared = prepare(templates(model, "openai-gpt-oss-120b"), request(Message("user", "a"), tools=(tool,)))
    prompt = model.text(prepared.prompt.tokens).decode()
    for shown in ("names: string[]", "list?: any[]", "deep?: integer[]"):
        assert shown in re.sub(r"\s+", " ", prompt), prompt
    assert prepared.tools["find"].check.fault('{"names":[1]}') is not None


@cases(
    "family", ["Qwen-Qwen3-0.6B", "openai-gpt-oss-120b", "Qwen3-Coder", "HuggingFaceTB-SmolLM2-135M-Instruct"]
)
def test_properties_keep_their_order_from_the_wire_to_the_prompt_and_the_grammar(
    model: _llama.Model, family: str
) -> None:
    names = ("zeta", "alpha", "mid", "beta")
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}
    asked = {"name": "f", "description": "", "input_schema": schema}
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    line = {"id": "1", "messages": messages, "tools": [asked]}
    (sent,) = v2.parse(orjson.dumps(line)).tools
    tool = Tool(sent.name, sent.description, bytes(sent.input_schema).decode())
    prompt = prepare(templates(model, family), request(tools=(tool,))).prompt
    shown = re.findall("|".join(names), model.text(prompt.tokens).decode())
    assert shown == list(names)
    held = guides(model).tool(tool)
    for arguments, fits in (('{"zeta": 1, "mid": 2, "beta": 3}', True), ('{"mid": 2, "zeta": 1}', False)):
        assert guides(model).value(held).accept_text(arguments.encode()) == fits


def test_a_template_that_drops_text_is_reported(model: _llama.Model) -> None:
    of_users = Family(
        _llama.Templates(model, "{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}"),
        guides(model),
    )
    with pytest.raises(InvalidRequest, match=r"leaves out the text of message 2 \(assistant\)"):
        prepare(
            of_users, request(Message("user", "a"), Message("assistant", "lost words"), Message("user", "b"))
        )


@cases("path", sorted(TEMPLATES.glob("*.jinja")))
def test_every_vendored_template_keeps_an_ordinary_conversation(model: _llama.Model, path: Path) -> None:
    messages = (
        Message("system", 'Be   brief,\nand "kind".'),
        Message("user", "What is\n\n1 + 1?"),
        Message("assistant", "It is 2."),
        Message("user", " And 2 + 2? "),
    )
    prompt = model.text(prepare(templates(model, path.stem), request(*messages)).prompt.tokens).decode()
    assert all(word in prompt for message in messages for word in str(message.content).split())


def test_the_template_in_a_file_tells_of_thinking_and_tools(model: _llama.Model) -> None:
    """As llama.cpp finds by rendering. Its parsers of some families also accept thinking without a place."""
    without_place = {
        "Kimi-K2-Instruct",
        "moonshotai-Kimi-K2",
        "LFM2-8B-A1B",
        "unsloth-mistral-Devstral-Small-2507",
    }
    texts = {path.stem: path.read_text() for path in TEMPLATES.glob("*.jinja")}
    found = {name: _llama.Templates(model, text) for name, text in texts.items()}
    thinking = {name for name in texts if found[name].thinking}
    assert {name for name, text in texts.items() if has_thinking(text)} == thinking - without_place
    tools = {name for name in texts if found[name].tools}
    of_its_own = {"fireworks-ai-llama-3-firefunction-v2"}  # it renders tools in another way
    assert {name for name, text in texts.items() if "tools" in text} == tools | of_its_own


@pytest.mark.parametrize("family", ["Qwen-Qwen3-0.6B", "deepseek-ai-DeepSeek-V3.1", "GLM-4.6"])
def test_a_schema_lets_a_family_think_first(model: _llama.Model, family: str) -> None:
    schema = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}'
    prepared = prepare(templates(model, family), request(json_schema=schema))
    assert prepared.reader is not None
    assert prepared.guide is not None
    thought = "hmm</think>" if family.startswith("deepseek") else "<think>hmm</think>"
    answer = thought + '{"n":3}'
    assert prepared.guide.accept_text(answer.encode())
    assert summary(read(prepared.reader, [answer])) == ("hmm", '{"n":3}', [])


def test_no_tool_is_offered_when_none_is_to_be_called(model: _llama.Model) -> None:
    qwen = templates(model, "Qwen-Qwen2.5-7B-Instruct")
    none = prepare(qwen, request(tools=(WEATHER,), tool_choice="none"))
    assert none.prompt.tokens == prepare(qwen, request()).prompt.tokens


@pytest.mark.parametrize("family", ["Qwen-Qwen2.5-7B-Instruct", "its own"])
def test_only_the_named_tool_is_offered(model: _llama.Model, family: str) -> None:
    other = Tool("get_time", "The time", '{"type":"object","properties":{}}')
    asked = request(tools=(WEATHER, other), tool_name="get_time")
    guide = prepare(templates(model, family), asked).guide
    assert guide is not None
    start = b'{"name": "get_' if family == "its own" else b'<tool_call>\n{"name": "get_'
    assert guide.accept_text(start)
    assert not guide.accept_text(b"w")


def test_text_before_a_generic_call_is_shown_as_it_comes() -> None:
    reader = generic_tools.Reader(required=False)
    assert reader.feed("I will look <too", last=False) == [Text("I will look ")]
    assert reader.feed(" <tool", last=False) == [Text("<too ")]
    assert reader.feed("_call>" + CALL, last=False) == []
    assert reader.feed("", last=True) == [ToolUse(ToolCall("", "get_weather", '{"city":"Paris"}'))]
    undecided = generic_tools.Reader(required=False)
    assert undecided.feed("a <tool_", last=False) == [Text("a ")]
    assert undecided.feed("", last=True) == [Text("<tool_")]


async def test_a_possible_call_start_is_kept_when_the_answer_is_cut() -> None:
    class Cut(Stream):
        def __init__(self, text: bytes) -> None:
            self._events = iter((Frames(text + b"\n"), Done("length", Usage(1, 3))))

        async def __anext__(self) -> Event:
            return next(self._events)

        def cancel(self) -> None: ...

        def close(self) -> None: ...

    with ThreadPoolExecutor(1) as pool:
        for text, shown in ((b"a <tool_", ["a ", "<tool_"]), (b"a <tool_call>{", ["a "])):
            stream = TypedStream(Cut(text), generic_tools.Reader(required=False), pool, request())
            *events, done = [await anext(stream) for _ in range(len(shown) + 1)]
            assert events == [Text(piece) for piece in shown]
            assert isinstance(done, Done)
