"""Tool calls as every vendored template renders them, parsed as a whole and character by character.

docs/structured.md lists the templates whose calls cannot be parsed; this module generates its table.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.local import _llama, generic_tools
from inferd.engine.local.conversation import NOTHING, Family, Prepared, _FamilyReader, prepare
from inferd.engine.local.schema.family_repairs import repaired
from inferd.engine.local.schema.guides import Guides
from inferd.engine.requests import Message, Tool, ToolCall
from tests.cases import cases
from tests.unit.test_conversation import TEMPLATES, read, request, summary
from tests.unit.test_llamacpp import load_model

PAGE = (Path(__file__).parents[2] / "docs/structured.md").read_text("utf-8")
PART = re.compile(r"(?<=<!-- calls -->\n)(.*?)(?=<!-- /calls -->)", re.S)


def tool(name: str, **properties: str) -> Tool:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return Tool(name, f"The {name}", json.dumps(schema))


TOOLS = (tool("get_weather", city="string", days="integer"), tool("get_time", zone="string", exact="boolean"))
CALLS: list[tuple[str, Any]] = [
    ("get_weather", {"city": 'São "Paulo"', "days": 3}),
    ("get_time", {"zone": "UTC", "exact": True}),
]
# End-of-turn tokens in the vocabularies of the families, which no answer contains.
ENDS = re.compile(
    "|".join(
        map(
            re.escape,
            (
                *("<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN", "<|begin|>", "<|call|>", "<|end_of_msg|>"),
                *("<|end_of_text|>", "<|eom_id|>", "<|eom|>", "<|eot_id|>", "<|eot|>", "<|im_end|>"),
                *("<|message_sep|>\n\n", "<|observation|>", "<|tool_response>", "</assistant>", "</s>"),
                *("<SPECIAL_12>", "<end_of_sentence>", "<seed:eos>", "<sep>", "[RESULT", "[e~["),
                *(
                    "<\uff5cend\u2581of\u2581sentence\uff5c>",
                    "<\uff5chy_eos:opensource\uff5c>",
                    "<|assistant_start|>",
                ),
                *("<|start|>", "<|end|>", "<|user|>", "RESULT", "<turn|>"),
            ),
        )
    )
)

# The guides of these templates differ from their rendering of earlier calls.
WRITTEN_OTHERWISE = {
    "CohereForAI-c4ai-command-r-plus-tool_use",  # arguments in lines of their own
    "Reka-Edge",  # escapes
}


@cache
def model() -> _llama.Model:
    return load_model()


@cache
def family(path: Path) -> Family:
    return Family(_llama.Templates(model(), path.read_text("utf-8")), guides())


@cache
def guides() -> Guides:
    return Guides(model())


def shown_calls(of_family: Family, prepared: Prepared, n: int) -> str:
    """The template's rendering of the first ``n`` calls of an answer."""
    calls = tuple(
        ToolCall(f"abcdefgh{i}", name, json.dumps(arguments, ensure_ascii=False))
        for i, (name, arguments) in enumerate(CALLS[:n])
    )
    tools = [
        {
            "type": "function",
            "function": {"name": each.name, "description": "", "parameters": json.loads(each.schema)},
        }
        for each in TOOLS
    ]

    def text(*messages: Message) -> tuple[str, str]:
        prompt = of_family.render((Message("user", "Hello"), *messages), NOTHING, tools=tools, thinking=False)
        begun = json.loads(prompt.syntax)["generation_prompt"]
        whole = model().text(prompt.tokens).decode()
        return whole, whole.removesuffix(begun)

    asked, _ = text()
    called = Message("assistant", "", tool_calls=calls)
    _, answered = text(called)
    if "Paulo" not in answered:  # it shows a call only together with its result
        _, answered = text(called, *(Message("tool", "RESULT", tool_call_id=call.id) for call in calls))
    at = next(i for i, (one, other) in enumerate(zip(asked + "\0", answered, strict=False)) if one != other)
    words = [word.decode() for word in (prepared.prompt.triggers or ((), ()))[0]]
    begins = [found for word in words if (found := answered.find(word, max(0, at - 30))) >= 0]
    text_of_calls = answered[min(begins, default=at) :]
    end = ENDS.search(text_of_calls, 1)
    return text_of_calls[: end.start()] if end else text_of_calls


def thought(prepared: Prepared) -> str:
    """A thought, if the prompt has opened one."""
    start, ends = prepared.prompt.thinking
    begun = json.loads(prepared.prompt.syntax)["generation_prompt"]
    inside = bool(ends) and (begun.rstrip().endswith(start.decode()) or "reasoning steps" in begun)
    return "hmm" + ends[0].decode() if inside else ""


def outcome(path: Path) -> str:
    """The reason why some calls of a template are not parsed from its own rendering; empty if all are."""
    of_family = family(path)
    prepared = prepare(of_family, request(tools=TOOLS))
    if isinstance(prepared.reader, generic_tools.Reader):
        return "has no format for tools: inferd describes them, and calls have inferd's format"
    if not of_family.templates.calls:
        return "renders no calls: inferd writes earlier calls in its own format"
    n = 2 if of_family.templates.several_calls else 1
    answer = thought(prepared) + shown_calls(of_family, prepared, n)
    apart = n == 2 and "UTC" not in answer
    n = 1 if apart else n
    another = _FamilyReader(_llama.Reply(repaired(prepared.prompt.syntax)))
    for reader, pieces in ((prepared.reader, [answer]), (another, list(answer))):
        assert reader is not None
        assert summary(read(reader, pieces))[1:] == ("", CALLS[:n]), (path.stem, answer)
    if path.stem not in WRITTEN_OTHERWISE:
        assert prepared.guide is not None, path.stem
        assert prepared.guide.accept_text(shown_calls(of_family, prepared, n).rstrip().encode()), path.stem
        assert prepared.guide.accepting, path.stem
    if apart:
        return "writes each call as a message of its own"
    return "" if n == 2 else "takes one call per message: inferd splits several calls into several messages"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return {path.stem: outcome(path) for path in sorted(TEMPLATES.glob("*.jinja"))}


def test_the_table_lists_calls_that_are_not_read_back(outcomes: dict[str, str]) -> None:
    assert len(outcomes) == 70
    rows = ["| template | behaviour |", "|---|---|"]
    rows += [f"| {name} | {reason} |" for name, reason in outcomes.items() if reason]
    found = PART.search(PAGE)
    assert found is not None
    assert found[0] == "\n".join(rows) + "\n"


def test_text_without_a_call_is_text_after_the_prompt_of_command_r_plus() -> None:
    prepared = prepare(
        family(TEMPLATES / "CohereForAI-c4ai-command-r-plus-tool_use.jinja"), request(tools=TOOLS)
    )
    assert prepared.reader is not None
    assert summary(read(prepared.reader, list("Just text."))) == ("", "Just text.", [])


def conversation_of(messages: tuple[Message, ...], name: str) -> str:
    prompt = family(TEMPLATES / f"{name}.jinja").render(messages, NOTHING, thinking=False)
    return model().text(prompt.tokens).decode()


@cases("name", ["GigaChat3-10B-A1.8B", "LFM2-8B-A1B", "HuggingFaceTB-SmolLM3-3B", "google-gemma-2-2b-it"])
def test_no_call_of_a_conversation_is_dropped(name: str) -> None:
    calls = tuple(ToolCall(f"abcdefgh{i}", f"tool_{i}", f'{{"at":"place{i}"}}') for i in range(2))
    messages = (
        Message("user", "a"),
        Message("assistant", "", tool_calls=calls),
        *(Message("tool", f"result{i}", tool_call_id=f"abcdefgh{i}") for i in range(2)),
        Message("user", "b"),
    )
    text = conversation_of(messages, name)
    order = [text.index(word) for word in ("place0", "result0", "result1")]
    assert order == sorted(order)
    assert "place1" in text


def test_a_strict_template_keeps_user_text_after_a_result() -> None:
    messages = (
        Message("user", "a"),
        Message("assistant", "", tool_calls=(ToolCall("abcdefghi", "f", '{"at":"here"}'),)),
        Message("tool", "sunny", tool_call_id="abcdefghi"),
        Message("user", "And then?"),
    )
    text = conversation_of(messages, "mistralai-Mistral-Nemo-Instruct-2407")
    assert text.index("here") < text.index("sunny") < text.index("And then?")


def test_nested_arguments_are_json_where_a_template_prints_them_as_they_are() -> None:
    arguments = {"to": ["a@b.c", "d"], "options": {"rate": 0.5, "big": 2**70}, "urgent": True}
    messages = (
        Message("user", "a"),
        Message("assistant", "", tool_calls=(ToolCall("abcdefghi", "send", json.dumps(arguments)),)),
        Message("tool", "sent", tool_call_id="abcdefghi"),
    )
    text = conversation_of(messages, "openbmb-MiniCPM5-1B")
    assert '<param name="to">["a@b.c", "d"]</param>' in text
    assert '<param name="options">{"rate": 0.5, "big": 1180591620717411303424}</param>' in text


@cases("name", ["Apriel-1.6-15b-Thinker-fixed", "unsloth-Apriel-1.5"])
def test_a_call_with_its_id_is_read_as_apriel_shows_it(name: str) -> None:
    calls = tuple(ToolCall(f"abcdefgh{i}", tool, json.dumps(given)) for i, (tool, given) in enumerate(CALLS))
    results = (Message("tool", "RESULT", tool_call_id=call.id) for call in calls)
    shown = conversation_of(
        (Message("user", "Hello"), Message("assistant", "", tool_calls=calls), *results), name
    )
    begin, end = "<tool_calls>", "</tool_calls>"
    answer = begin + shown.rpartition(begin)[2].partition(end)[0] + end
    assert '"id": "abcdefgh1"' in answer
    prepared = prepare(family(TEMPLATES / f"{name}.jinja"), request(tools=TOOLS))
    whole = thought(prepared) + answer
    for pieces in ([whole], list(whole)):
        reader = _FamilyReader(_llama.Reply(repaired(prepared.prompt.syntax)))
        assert summary(read(reader, pieces))[1:] == ("", CALLS)
    assert prepared.guide is not None
    assert prepared.guide.accept_text(answer.encode())
