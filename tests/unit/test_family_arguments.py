"""The arguments of tool calls in the notation of each model family: they must conform to the schemas of the
tools.

(This file has over 400 lines, because most of it is schemas, with values that follow them and values that do
not.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from inferd.engine.local.conversation import prepare
from inferd.engine.local.schema import raw_texts
from inferd.engine.requests import Tool
from tests.cases import cases
from tests.unit.test_conversation import TEMPLATES, follow, read, request, summary
from tests.unit.test_family_calls import TOOLS, family, guides, model, tool

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


NODE = {
    "type": "object",
    "properties": {"kind": {"const": "node"}, "next": {"$ref": "#/$defs/Node"}},
    "required": ["kind"],
    "additionalProperties": False,
}
LEAF = {
    "type": "object",
    "properties": {"kind": {"const": "leaf"}, "size": {"type": "integer"}},
    "required": ["kind", "size"],
    "additionalProperties": False,
}
OPEN = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": True,
}
PAIR = {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 1}
COMBINED: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    (OPEN, [{"a": 1}, {"a": 1, "b": ["x", {}]}], [{"b": 1}, {"a": "x"}, 3]),
    (
        {**OPEN, "additionalProperties": {"type": "boolean"}},
        [{"a": 1}, {"a": 1, "b": True, "c": False}],
        [{"a": 1, "b": 2}, {"a": True, "b": True}],
    ),
    ({"additionalProperties": {"enum": [1, "x"]}, "type": "object"}, [{}, {"b": 1, "c": "x"}], [{"b": 2}]),
    (
        {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "minProperties": 1,
            "maxProperties": 2,
        },
        [{"b": 1}, {"b": 1, "c": 2}],
        [{}, {"b": 1, "c": 2, "d": 3}],
    ),
    (
        {
            "type": "object",
            "patternProperties": {"^x-": {"type": "string"}},
            "additionalProperties": {"type": "integer"},
        },
        [{"x-a": "1", "b": 2}],
        [{"x-a": 1}, {"b": "2"}],
    ),
    ({"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 3}]}, ["ab", "abc"], ["a", "abcd", 1]),
    ({"type": "number", "allOf": [{"minimum": 0}, {"maximum": 9}]}, [0, 2.5], [-1, 10]),
    (
        {"allOf": [OPEN, {"properties": {"b": {"type": "string"}}, "required": ["b"]}]},
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"b": "x"}, {"a": 1, "b": 2}],
    ),
    (
        {**OPEN, "required": [], "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": "any"}, {"a": 1, "b": 2}],
        [{}, {"c": 1}],
    ),
    ({"oneOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}]}, [3, [None]], ["x", [3]]),
    (
        {"oneOf": [{"$ref": "#/$defs/Node"}, {"$ref": "#/$defs/Leaf"}]},
        [{"kind": "node", "next": {"kind": "node"}}, {"kind": "leaf", "size": 2}],
        [
            {"kind": "leaf"},
            {"kind": "node", "next": {"kind": "leaf", "size": 1}},
            {"kind": "node", "size": 2},
        ],
    ),
    (PAIR, [["x"], ["x", 1], ["x", 1, None]], [[], [1], ["x", "y"]]),
    ({**PAIR, "items": False, "minItems": 2}, [["x", 1]], [["x"], ["x", 1, 2]]),
    ({"type": "array", "items": {"$ref": "#/$defs/Größe"}, "maxItems": 2}, [[], [1, 2]], [[0], [1, 2, 3]]),
    ({"enum": [{"a": [1, None]}, ["x", True]]}, [{"a": [1, None]}, ["x", True]], [{"a": [1]}, []]),
    ({"type": ["boolean", "string"], "pattern": "^[a-z]+$"}, [True, "x"], ["X", None]),
]


def gemma(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{gemma(each)}' for name, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(gemma, value))}]"
    return f'<|"|>{value}<|"|>' if isinstance(value, str) else json.dumps(value)


def gemma_call(value: Any) -> str:
    return f"<|tool_call>call:f{gemma({'v': value})}<tool_call|>"


def python_call(value: Any) -> str:
    return f"<|tool_call_start|>[f(v={value!r})]<|tool_call_end|>"


def json_call(value: Any) -> str:
    return f"<|tool_call_start|>[f(v={json.dumps(value)})]<|tool_call_end|>"


def assert_a_combination_is_enforced(
    name: str, call: Callable[[Any], str], schema: dict[str, Any], fits: list[Any], others: list[Any]
) -> None:
    definitions = {"Node": NODE, "Leaf": LEAF, "Größe": {"type": "integer", "minimum": 1}}
    whole = {"$defs": definitions, "type": "object", "properties": {"v": schema}, "required": ["v"]}
    asked = request(tools=(Tool("f", "", json.dumps(whole)),), tool_choice="required", thinking=False)
    for value in (*fits, *others):
        prepared = prepare(family(TEMPLATES / f"{name}.jinja"), asked)
        assert prepared.guide is not None
        accepted = follow(model(), prepared.guide, call(value)) and prepared.guide.accepting
        assert accepted == (value in fits), value
        assert prepared.reader is not None
        if accepted:
            assert summary(read(prepared.reader, list(call(value))))[2] == [("f", {"v": value})]


@cases("schema, fits, others", COMBINED)
def test_gemma_4_keeps_combined_schemas(schema: dict[str, Any], fits: list[Any], others: list[Any]) -> None:
    assert_a_combination_is_enforced("google-gemma-4-31B-it", gemma_call, schema, fits, others)


@cases("schema, fits, others", COMBINED)
def test_lfm_2_5_keeps_combined_schemas(schema: dict[str, Any], fits: list[Any], others: list[Any]) -> None:
    assert_a_combination_is_enforced("LFM2.5-Instruct", python_call, schema, fits, others)
    assert_a_combination_is_enforced("LFM2.5-Instruct", json_call, schema, fits, [])


EITHER = Tool(
    "f",
    "",
    json.dumps(
        {
            "type": "object",
            "anyOf": [
                {"properties": {"a": {"type": "string", "enum": ["x", "y"]}}, "required": ["a"]},
                {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
            ],
        }
    ),
)


@cases(
    "name, call, one, other, wrong",
    [
        ("LFM2.5-Instruct", "<|tool_call_start|>[f({})]<|tool_call_end|>", "a='x'", "b=3", "a='z'"),
        (
            "Qwen3-Coder",
            "<tool_call>\n<function=f>\n{}</function>\n</tool_call>",
            "<parameter=a>\nx\n</parameter>\n",
            "<parameter=b>\n3\n</parameter>\n",
            "<parameter=a>\nz\n</parameter>\n",
        ),
    ],
)
def test_parameters_in_alternatives_are_parameters(
    name: str, call: str, one: str, other: str, wrong: str
) -> None:
    for arguments, value in ((one, {"a": "x"}), (other, {"b": 3}), (wrong, None)):
        asked = request(tools=(EITHER,), tool_choice="required", thinking=False)
        prepared = prepare(family(TEMPLATES / f"{name}.jinja"), asked)
        text = call.format(arguments)
        assert prepared.guide is not None
        assert (follow(model(), prepared.guide, text) and prepared.guide.accepting) == (value is not None)
        assert prepared.reader is not None
        if value is not None:
            assert summary(read(prepared.reader, list(text)))[2] == [("f", value)]


@cases("name, call", [("google-gemma-4-31B-it", gemma_call), ("LFM2.5-Instruct", python_call)])
def test_a_definition_used_again_and_again_is_given_up(name: str, call: Callable[[Any], str]) -> None:
    """Each definition uses the next one twice, so that the last one is used 2^40 times."""
    twice = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    definitions = {**twice, "d40": {"type": "integer"}}
    schema = {"$defs": definitions, "type": "object", "properties": {"v": {"$ref": "#/$defs/d0"}}}
    prepared = prepare(
        family(TEMPLATES / f"{name}.jinja"),
        request(tools=(Tool("f", "", json.dumps(schema)),), tool_choice="required", thinking=False),
    )
    assert prepared.guide is not None
    assert follow(model(), prepared.guide, call(3))
    assert prepared.guide.accepting


def test_lfm_2_5_holds_texts_alone_and_may_leave_out_optional_arguments() -> None:
    texts = Tool(
        "f", "", json.dumps({"properties": {"a": {"type": "string", "maxLength": 2}, "b": {"const": "x"}}})
    )
    asked = request(tools=(texts,), tool_choice="required", thinking=False)
    for arguments, value in (
        ("", {}),
        ("a='it', b=\"x\"", {"a": "it", "b": "x"}),
        ('a="\\n"', {"a": "\n"}),
        ("a='its'", None),
        ("b='x', a='it'", None),
    ):
        prepared = prepare(family(TEMPLATES / "LFM2.5-Instruct.jinja"), asked)
        call = f"<|tool_call_start|>[f({arguments})]<|tool_call_end|>"
        assert prepared.guide is not None
        assert (follow(model(), prepared.guide, call) and prepared.guide.accepting) == (value is not None), (
            call
        )
        assert prepared.reader is not None
        if value is not None:
            assert summary(read(prepared.reader, list(call)))[2] == [("f", value)]


SETTING = Tool(
    "f",
    "",
    json.dumps(
        {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "maximum": 9},
                "b": {"type": "boolean"},
                "c": {"type": "string", "enum": ["x", "y'z"]},
                "d": {"type": "array", "items": {"type": "integer"}},
                "e": {"type": "string", "pattern": "^[a-z']{2}$"},
                "f": {"type": "string"},
            },
            "required": ["b"],
        }
    ),
)


def test_the_arguments_of_lfm_2_5_follow_their_schema() -> None:
    of_family = family(TEMPLATES / "LFM2.5-Instruct.jinja")
    asked = request(tools=(SETTING,), tool_choice="required", thinking=False)
    for arguments, read_as in (
        ("b=True", {"b": True}),
        ("a=3,b=false", {"a": 3, "b": False}),
        ('a=-3, b=True, c="x", d=[1, 2]', {"a": -3, "b": True, "c": "x", "d": [1, 2]}),
        (
            "b=False, c=\"y'z\", e='uv', f='São \"Paulo\"'",
            {"b": False, "c": "y'z", "e": "uv", "f": 'São "Paulo"'},
        ),
        ('b=False, e="u\'", f="it\'s"', {"b": False, "e": "u'", "f": "it's"}),
        ("", None),
        ("a=3", None),
        ("a=10, b=True", None),
        ("b=1", None),
        ("b=True, a=3", None),
        ("b=True, b=True", None),
        ('b=True, c="z"', None),
        ("b=True, e='uvw'", None),
        ('b=True, e="UV"', None),
        ("b=True, f=1", None),
        ("b=True, g=1", None),
    ):
        prepared = prepare(of_family, asked)
        call = f"<|tool_call_start|>[f({arguments})]<|tool_call_end|>"
        assert prepared.guide is not None
        fits = follow(model(), prepared.guide, call) and prepared.guide.accepting
        assert fits == (read_as is not None), arguments
        assert prepared.reader is not None
        if fits:
            assert summary(read(prepared.reader, list(call)))[2] == [("f", read_as)]


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
