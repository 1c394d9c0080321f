"""Repairs llama.cpp's parsers where they do not match the output of a model's chat template.

llama.cpp detects the format of a model family by comparing rendered conversations, and makes errors for some
templates. Each function here fixes one of these errors in the parser's list of nodes (see
:mod:`~inferd.engine.local.schema.family_grammar`). Each function recognizes from the nodes of a parser and
from the prompt whether the parser has the error.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson

Node = dict[str, Any]

_PROBE_ID = "call00001"  # the id of the calls that llama.cpp renders to detect a format


def repaired(syntax: bytes) -> bytes:
    """Repairs ``syntax``, the JSON of the parser for the answer to a prompt with tools. Also permits white
    space at the end of the answer."""
    whole = orjson.loads(syntax)
    arena = orjson.loads(whole["parser"])
    nodes = _Nodes(arena["parsers"])
    root = nodes.all[arena["root"]]
    _text_behind_the_prompt(nodes, root, whole["generation_prompt"])
    for node in list(nodes.all):
        if node["type"] == "literal":
            _id_of_the_probe(nodes, node)
        elif node["type"] == "sequence":
            _mark_of_arguments_twice(nodes, node)
        elif node["type"] == "tag" and node["tag"] == "tool-arg-value":
            _scalars_of_python(nodes, node)
        elif node["type"] == "tag" and node["tag"] == "tool-args":
            _no_argument(nodes, node)
        elif node["type"] == "rule" and node["trigger"]:
            _commas_outside_of_an_array(nodes, node)
            _ids_behind_arguments(nodes, node)
    _marks_between_calls(nodes, arena["rules"], whole["generation_prompt"])
    if root["type"] == "sequence" and nodes.all[root["children"][-1]]["type"] == "end":
        root["children"].insert(-1, nodes.add(type="space"))
    whole["parser"] = orjson.dumps(arena).decode()
    return orjson.dumps(whole)


class _Nodes:
    def __init__(self, nodes: list[Node]) -> None:
        self.all = nodes

    def add(self, **node: Any) -> int:
        self.all.append(node)
        return len(self.all) - 1

    def literal(self, text: str) -> int:
        return self.add(type="literal", literal=text)

    def children(self, node: Node) -> list[Node]:
        return [self.all[i] for i in node["children"]]


def _id_of_the_probe(nodes: _Nodes, node: Node) -> None:
    """Solar Open: before a tool's name, the parser expects the call id of llama.cpp's own test conversation.
    The repaired parser accepts any id."""
    before, found, behind = node["literal"].partition(_PROBE_ID)
    if found and behind:
        until = nodes.add(type="until", delimiters=[behind])
        given = nodes.add(type="atomic", child=nodes.add(type="tag", tag="tool-id", child=until))
        del node["literal"]
        node.update(type="sequence", children=[nodes.literal(before), given, nodes.literal(behind)])


def _mark_of_arguments_twice(nodes: _Nodes, node: Node) -> None:
    """Mistral Small 3.2: the parser expects the marker of the arguments twice, after the tool's name and
    after the call id. The template writes this marker only after the id."""
    children = nodes.children(node)
    for opening, option, mark in zip(children, children[1:], children[2:], strict=False):
        if opening["type"] != "atomic" or option["type"] != "repetition" or mark["type"] != "literal":
            continue
        opened = nodes.all[nodes.all[opening["child"]].get("child", -1)]
        last = nodes.all[opened["children"][-1]] if opened["type"] == "sequence" else opened
        if last["type"] == "literal" and last["literal"] == mark["literal"] != "":
            last["literal"] = ""


def _commas_outside_of_an_array(nodes: _Nodes, rule: Node) -> None:
    """MiniMax: the parser expects a comma between two calls. The template writes a comma only between calls
    in an array."""
    before = ""
    left = [rule["child"]]
    while left:
        node = nodes.all[left.pop()]
        if node["type"] == "literal":
            before += node["literal"]
        elif node["type"] == "repetition" and not before.rstrip().endswith("["):
            _without_comma(nodes, nodes.all[node["child"]])
        elif node["type"] == "sequence":
            left += reversed(node["children"])


def _without_comma(nodes: _Nodes, further: Node) -> None:
    parts = nodes.children(further) if further["type"] == "sequence" else []
    if parts and parts[-1]["type"] == "choice" and _are_tools(nodes, parts[-1]):
        for part in parts[:-1]:
            if part["type"] == "literal" and part["literal"].strip() == ",":
                part["literal"] = ""


def _are_tools(nodes: _Nodes, choice: Node) -> bool:
    return all(
        child["type"] == "rule" and child["name"].startswith("tool-") for child in nodes.children(choice)
    )


def _ids_behind_arguments(nodes: _Nodes, rule: Node) -> None:
    """Apriel: in earlier turns, the template writes the id as the last member of a call. The repaired parser
    accepts a call with or without this id."""
    parts = nodes.children(nodes.all[rule["child"]]) if "children" in nodes.all[rule["child"]] else []
    if [part["literal"] for part in parts if part["type"] == "literal"][:2] != ["<tool_calls>", "["]:
        return
    until = nodes.add(type="until", delimiters=['"'])
    given = nodes.add(type="atomic", child=nodes.add(type="tag", tag="tool-id", child=until))
    space, quote = nodes.add(type="space"), nodes.literal('"')
    name = [space, nodes.literal(","), space, nodes.literal('"id"'), space, nodes.literal(":"), space]
    member = nodes.add(type="sequence", children=[*name, quote, given, quote])
    option = nodes.add(type="repetition", child=member, min_count=0, max_count=1)
    for node in list(nodes.all):
        if node["type"] != "tag" or node["tag"] != "tool":
            continue
        call = nodes.all[node["child"]]
        if call["type"] == "sequence" and _first_literal(nodes, nodes.all[call["children"][-1]]) == "}":
            call["children"].insert(-1, option)


def _no_argument(nodes: _Nodes, node: Node) -> None:
    """LFM2.5: the parser requires an argument in each call of a tool that has parameters. The repaired parser
    also accepts a call without arguments."""
    arguments = nodes.all[node["child"]]
    if arguments["type"] == "sequence" and nodes.children(arguments)[0]["type"] == "choice":
        node["child"] = nodes.add(type="repetition", child=node["child"], min_count=0, max_count=1)


def _scalars_of_python(nodes: _Nodes, node: Node) -> None:
    """Some templates write booleans and null as Python does. The repaired parser also accepts ``True``,
    ``False`` and ``None``, which llama.cpp converts to JSON."""
    words = [nodes.literal(word) for word in ("True", "False", "None")]
    node["child"] = nodes.add(type="choice", children=[*words, node["child"]])


def _text_behind_the_prompt(nodes: _Nodes, root: Node, prompt: str) -> None:
    """Command R+: the parser expects a marker before the answer's text, but the prompt already ends with this
    marker. The repaired parser expects no markers around the text, which ends where a call begins."""
    if root["type"] != "sequence":
        return
    children = nodes.children(root)
    for option, calls in pairwise(children):
        if option["type"] != "repetition" or nodes.all[option["child"]]["type"] != "sequence":
            continue
        text = nodes.all[option["child"]]
        first, *_, last = nodes.children(text)
        if first["type"] != "literal" or not first["literal"] or not prompt.endswith(first["literal"]):
            continue
        mark = _first_literal(nodes, calls)
        tags = [child for child in nodes.children(text) if child["type"] == "tag"]
        if mark and len(tags) == 1 and last["type"] == "literal":
            tags[0]["child"] = nodes.add(type="until", delimiters=[mark])
            first["literal"] = last["literal"] = ""


def _first_literal(nodes: _Nodes, node: Node) -> str:
    while node["type"] != "literal":
        if "child" in node:
            node = nodes.all[node["child"]]
        elif node.get("children"):
            node = nodes.all[node["children"][0]]
        else:
            return ""
    return str(node["literal"])


def _marks_between_calls(nodes: _Nodes, rules: dict[str, int], prompt: str) -> None:
    """Functionary 3.2: the template writes the marker ``>>>`` at the end of the prompt and before each
    further call. The repaired parser accepts this marker before any call."""
    if "tools" not in rules or not prompt.endswith(">>>"):
        return
    calls = nodes.all[nodes.all[rules["tools"]]["child"]]
    if calls["type"] != "repetition":
        return
    tools = [nodes.all[i]["child"] for i in nodes.all[calls["child"]]["children"]]
    mark = nodes.add(type="repetition", child=nodes.literal(">>>"), min_count=0, max_count=1)
    calls["child"] = nodes.add(type="sequence", children=[mark, calls["child"]])
    _text_before_calls(nodes, rules["tools"], tools, calls["child"])


def _text_before_calls(nodes: _Nodes, rule: int, tools: list[int], call: int) -> None:
    """Functionary 3.2: the text before the calls may contain ``>>>``. The text ends where ``>>>`` and the
    name of a tool follow."""
    heads = [f">>>{_first_literal(nodes, nodes.all[tool])}\n" for tool in tools]
    further = nodes.add(type="repetition", child=call, min_count=0, max_count=-1)
    for node in list(nodes.all):
        if node["type"] != "sequence" or nodes.all[node["children"][-1]]["type"] != "tag":
            continue
        text = nodes.all[nodes.all[node["children"][-1]]["child"]]
        if text["type"] == "until" and text["delimiters"] == []:
            text["delimiters"] = heads
    for node in list(nodes.all):
        if node["type"] != "sequence" or rule not in node["children"]:
            continue
        before = node.pop("children")[:-1]
        for until in (nodes.all[part.get("child", -1)] for part in map(nodes.all.__getitem__, before)):
            if until["type"] == "until":
                until["delimiters"] = heads
        ways = [[*before, nodes.literal(">>>"), tool, further] for tool in tools]
        node.update(type="choice", children=[nodes.add(type="sequence", children=way) for way in ways])
