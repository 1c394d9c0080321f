"""Every vendored template's own rendering of calls, parsed whole and character by character.

docs/structured.md lists the templates whose calls cannot be parsed; this module generates its table.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.backend import Message, Tool, ToolCall
from inferd.engine.local import _llama, generic_tools
from inferd.engine.local.conversation import Family, Prepared, _FamilyReader, prepare
from inferd.engine.local.schema import raw_texts
from inferd.engine.local.schema.family_repairs import repaired
from inferd.engine.local.schema.guides import Guides
from tests.cases import cases
from tests.unit.test_conversation import TEMPLATES, follow, read, request, summary
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
        prompt = of_family.render((Message("user", "Hello"), *messages), (), tools=tools, thinking=False)
        begun = json.loads(prompt.syntax)["generation_prompt"]
        whole = model().text(prompt.tokens).decode()
        return whole, whole.removesuffix(begun)

    asked, _ = text()
    called = Message("assistant", "", tool_calls=calls)
    _, answered = text(called)
    if "Paulo" not in answered:  # it shows a call with its result only
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
    prompt = family(TEMPLATES / f"{name}.jinja").render(messages, (), thinking=False)
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
    for pieces in ([answer], list(answer)):
        reader = _FamilyReader(_llama.Reply(repaired(prepared.prompt.syntax)))
        assert summary(read(reader, pieces)) == ("", "", CALLS)
    assert prepared.guide is not None
    assert prepared.guide.accept_text(answer.encode())


MODE = Tool(
    "set_mode",
    "Sets it",
    json.dumps(
        {
            "type": "object",
            "$defs": {"Mode": {"enum": ["fast", "slow one"]}},
            "properties": {"mode": {"$ref": "#/$defs/Mode"}, "note": {"type": "string"}},
            "required": ["mode", "note"],
        }
    ),
)


RAW_FORMS = [
    (
        "Qwen3-Coder",
        "<tool_call>\n<function=set_mode>\n<parameter=mode>\n{}\n</parameter>\n"
        "<parameter=note>\nmedium\n</parameter>\n</function>\n</tool_call>",
    ),
    (
        "MiniMax-M2",
        '</think><minimax:tool_call>\n<invoke name="set_mode">\n<parameter name="mode">{}</parameter>\n'
        '<parameter name="note">medium</parameter>\n</invoke>\n</minimax:tool_call>',
    ),
    (
        "Kimi-K3",
        '<|close|>think<|sep|><|open|>tools<|sep|><|open|>call tool="set_mode" index="1"<|sep|>'
        '<|open|>argument key="mode" type="string"<|sep|>{}<|close|>argument<|sep|>'
        '<|open|>argument key="note" type="string"<|sep|>medium<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
    ),
]


@pytest.mark.parametrize(("name", "form"), RAW_FORMS)
def test_a_raw_parameter_is_one_of_the_texts_of_its_enum(name: str, form: str) -> None:
    asked = request(tools=(MODE,), tool_choice="required", thinking=False)
    of_family = family(TEMPLATES / f"{name}.jinja")
    for mode, fits in (("fast", True), ("slow one", True), ("medium", False), ("fast one", False)):
        guide = prepare(of_family, asked).guide
        assert guide is not None
        assert guide.accept_text(form.format(mode).encode()) == fits, mode


def test_a_parameter_without_a_type_is_served_by_a_template_that_wants_one() -> None:
    bare = Tool(
        "f",
        "",
        '{"properties":{"anything":{"description":"what"},"more":true,"both":{"type":["string","null"]}}}',
    )
    of_family = family(TEMPLATES / "ByteDance-Seed-OSS.jinja")
    prompt = prepare(of_family, request(tools=(bare,))).prompt
    text = model().text(prompt.tokens).decode()
    assert "anything: Any,more: Any,both: Any" in text


ALL_HELD = [
    (
        "meetkai-functionary-medium-v3.2",
        "",
        'get_weather\n{"city": "Paris", "days": DAYS}',
        "all\nType >>> and see.",
    ),
    (
        "openai-gpt-oss-120b",
        "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Paris", "days": DAYS}',
        "<|channel|>final<|message|>It is sunny.",
    ),
    (
        "muse-glimmer",
        " to=self<|message|>hmm<|eom|><|start|>assistant",
        ' to=f<|message|><atem:function_calls>\n<atem:invoke name="get_weather">\n'
        '<atem:parameter name="city">Paris</atem:parameter>\n'
        '<atem:parameter name="days">DAYS</atem:parameter>\n'
        "</atem:invoke>\n"
        "</atem:function_calls>",
        " to=user<|message|>It is sunny.",
    ),
    (
        "inclusionai-ling-3.0-flash",
        "hmm</think>",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value><arg_key>days</arg_key>\n"
        "<arg_value>DAYS</arg_value>\n</tool_call>",
        "It is sunny.",
    ),
    (
        "Kimi-K3",
        "hmm<|close|>think<|sep|>",
        '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="number"<|sep|>DAYS<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
        "<|open|>response<|sep|>It is sunny.",
    ),
]


CITY = (  # the argument in each form
    r'("city": "Paris", |<atem:parameter name="city">Paris</atem:parameter>\n'
    r"|<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>"
    r'|<[|]open[|]>argument key="city" type="string"<[|]sep[|]>Paris<[|]close[|]>argument<[|]sep[|]>)'
)


@pytest.mark.parametrize(
    ("name", "thought", "call", "text"), ALL_HELD, ids=lambda value: value if len(value) < 30 else ""
)
def test_calls_with_auto_work_with_thoughts_and_text(name: str, thought: str, call: str, text: str) -> None:
    of_family = family(TEMPLATES / f"{name}.jinja")

    def takes(answer: str) -> bool:
        guide = prepare(of_family, request(tools=TOOLS, tool_choice="auto")).guide
        assert guide is not None
        return follow(model(), guide, answer) and guide.accepting

    assert takes(thought + text)
    assert takes(thought + call.replace("DAYS", "3"))
    for bad in ("three", "3.5", '{"a": 3}'):
        assert not takes(thought + call.replace("DAYS", bad)), bad
    assert not takes(thought + call.replace("DAYS", "3").replace("get_weather", "get_nothing"))
    twice, missing = (re.sub(CITY, text, call.replace("DAYS", "3")) for text in (r"\1\1", ""))
    assert "Paris" not in missing
    assert twice.count("Paris") == 2
    assert not takes(thought + twice)
    assert not takes(thought + missing)


BOOKING = Tool(
    "book",
    "Books",
    json.dumps(
        {
            "type": "object",
            "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
            "properties": {
                "when": {"type": "string", "pattern": "^[0-9]{4}$"},
                "Class": {"enum": ["first", 2, None]},
                "guests": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2},
                "note": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
                "seat": {
                    "type": "object",
                    "properties": {"row": {"type": "integer"}, "aisle": {"type": "boolean"}},
                    "required": ["row"],
                    "additionalProperties": False,
                },
                "tree": {"$ref": "#/$defs/Node"},
                "more": {"allOf": [{"type": "string"}]},
            },
            "required": ["when", "guests"],
        }
    ),
)


def test_the_arguments_of_gemma_4_follow_their_schema() -> None:
    of_family = family(TEMPLATES / "google-gemma-4-31B-it.jinja")

    def takes(tool: Tool, arguments: str) -> bool:
        asked = request(tools=(tool,), tool_choice="required", thinking=False)
        guide = prepare(of_family, asked).guide
        assert guide is not None
        call = f"<|tool_call>call:{tool.name}{arguments}<tool_call|>".replace("'", '<|"|>')
        return follow(model(), guide, call) and guide.accepting

    for arguments in (
        "{guests:[],when:'1200'}",
        "{Class:'first',guests:[1,22],note:null,seat:{aisle:true,row:3},when:'1200'}",
        "{Class:2,guests:[0],more:'any',note:'abc',seat:{row:-3},tree:{next:{}},when:'0000'}",
    ):
        assert takes(BOOKING, arguments), arguments
    for arguments in (
        "{}",
        "{guests:[]}",
        "{guests:[],when:'12'}",
        "{guests:[-1],when:'1200'}",
        "{guests:[1,2,3],when:'1200'}",
        "{guests:[1,],when:'1200'}",
        "{,guests:[],when:'1200'}",
        "{guests:[],guests:[],when:'1200'}",
        "{Class:3,guests:[],when:'1200'}",
        "{guests:[],note:'abcd',when:'1200'}",
        "{guests:[],other:1,when:'1200'}",
        "{guests:[],seat:{aisle:true},when:'1200'}",
        "{guests:[],seat:{row:1,column:2},when:'1200'}",
    ):
        assert not takes(BOOKING, arguments), arguments
    every_part_optional = tool("f", a="integer", b="boolean", c="null")
    optional = Tool("f", "", every_part_optional.schema.replace('["a", "b", "c"]', "[]"))
    for arguments in ("{}", "{a:1}", "{b:true}", "{a:1,c:null}", "{b:false,c:null}", "{a:1,b:true,c:null}"):
        assert takes(optional, arguments), arguments
    assert takes(Tool("f", "", "{}"), "{any:[1,'x']}")


def test_a_call_behind_a_text_of_functionary_3_2_is_held_and_read() -> None:
    of_family = family(TEMPLATES / "meetkai-functionary-medium-v3.2.jinja")
    text = "all\nType >>> and see."
    call = 'get_weather\n{"city": "Paris", "days": 3}'
    for answer, fits in (
        (f"{text}\n>>>{call}", True),
        (f"{text}\n>>>{call.replace('3', 'null')}", False),
        (f'{text}>>>get_time\n{{"zone": "UTC", "exact": true}}>>>{call}', True),
        (f'{text}>>>get_time\n{{"zone": "UTC", "exact": 1}}>>>{call}', False),
    ):
        prepared = prepare(of_family, request(tools=TOOLS, tool_choice="auto"))
        assert prepared.guide is not None
        assert (follow(model(), prepared.guide, answer) and prepared.guide.accepting) == fits, answer
        assert prepared.reader is not None
        _, shown, calls = summary(read(prepared.reader, list(answer)))
        assert shown == "Type >>> and see."
        assert len(calls) == 1 + ("get_time" in answer)


HELD_TEXTS = Tool(
    "set_mode",
    "Sets it",
    json.dumps(
        {
            "type": "object",
            "$defs": {"Day": {"type": "string", "format": "date"}},
            "properties": {
                "mode": {"type": "string", "pattern": r"^[A-Z]{2}/\d+$"},
                "note": {"allOf": [{"$ref": "#/$defs/Day"}, {"maxLength": 10}]},
            },
            "required": ["mode", "note"],
        }
    ),
)


@pytest.mark.parametrize(("name", "form"), RAW_FORMS)
def test_a_raw_parameter_follows_its_pattern_format_and_lengths(name: str, form: str) -> None:
    asked = request(tools=(HELD_TEXTS,), tool_choice="required", thinking=False)
    of_family = family(TEMPLATES / f"{name}.jinja")
    day = "2026-02-28"
    for mode, note, fits in (
        ("AB/12", day, True),
        ("AB/", day, False),
        ("xAB/1", day, False),
        ("AB/1x", day, False),
        ("AB/12", "2026-13-01", False),
        ("AB/12", "28 February", False),
    ):
        guide = prepare(of_family, asked).guide
        assert guide is not None
        text = form.format(mode).replace("medium", note)
        assert guide.accept_text(text.encode()) == fits, (mode, note)


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize(("name", "form"), RAW_FORMS)
def test_no_tool_makes_its_family_refuse_the_request(name: str, form: str, choice: str) -> None:
    """A text too long for the grammar is left to the final check; an impossible value is left out."""
    properties = {
        "mode": {"type": "string", "minLength": 9000},
        "note": {"enum": ["medium"]},
        "never": False,
    }
    hard = Tool("set_mode", "", json.dumps({"type": "object", "properties": properties}))
    guide = prepare(family(TEMPLATES / f"{name}.jinja"), request(tools=(hard,), tool_choice=choice)).guide
    assert guide is not None
    assert choice == "auto" or guide.accept_text(form.format("any").encode())


@pytest.mark.parametrize(
    ("schema", "fits", "others"),
    [
        ({"pattern": "b+"}, ["abc", "b", "x\ny b"], ["", "ac"]),
        ({"pattern": "^(a|b)$"}, ["a", "b"], ["ab", "c"]),
        ({"pattern": "^a|b$"}, None, []),
        ({"pattern": r"^a\$$"}, ["a$"], ["a", "a\\"]),
        ({"pattern": r"[$^/]\d"}, ["x$1", "/2"], ["1"]),
        ({"pattern": "(^a)"}, None, []),
        ({"minLength": 2, "maxLength": 3}, ["ab", "a\nb"], ["a", "abcd"]),
        ({"format": "ipv4"}, ["127.0.0.1"], ["256.1.1.1", "1.2.3"]),
        ({"format": "email"}, ["a.b@example.com"], ["a.@example.com", "a b"]),
        ({"format": "date-time"}, ["2026-11-28T01:02:03.5Z"], ["2026-11-28"]),
        ({"format": "uri"}, None, []),
    ],
)
def test_an_expression_says_which_texts_follow_a_schema(
    schema: dict[str, Any], fits: list[str] | None, others: list[str]
) -> None:
    expression = raw_texts.expression({"type": "string", **schema}, {})
    assert (expression is None) == (fits is None)
    for text in (*(fits or ()), *others):
        guide = guides().grammar(f"%llguidance {{}}\nstart: TEXT\nTEXT: {expression}")
        assert (guide.accept_text(text.encode()) and guide.accepting) == (text in (fits or ())), text
