"""Translates the answer format of a model family to a grammar for llguidance, with JSON Schemas for its
values.

llama.cpp detects how a family writes tool calls and thoughts, and represents the format as a parser: a list
of numbered nodes such as literals, sequences and choices. This module converts the nodes to rules in
llguidance's Lark syntax. A node of type ``schema`` has a name (``tool-NAME-schema``,
``tool-NAME-arg-PARAMETER-schema``, ``response-format-schema``). The JSON Schema of that name replaces the
node.

(This file has over 400 lines, because the rules of all types of nodes refer to each other.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from inferd.engine.local.schema import lark

_LONGEST = 20  # blanks in a row; without a limit a model may write them endlessly

DICT, KEYWORDS = "gemma4-dict", "python-or-json-value"
"""The parser's rules for the notations of Gemma 4 and LFM2.5. They accept any values."""


class Inexpressible(Exception):
    """Raised if the grammar cannot express a part of the family's format."""


class NoCalls(Exception):
    """Raised if llama.cpp has not detected how the family writes calls."""


class Format:
    """The format of the answer to one rendered prompt. ``syntax`` is the parser in JSON. ``control`` maps the
    text of each control token to its id.

    ``schema_of`` maps the name of a ``schema`` node or a rule to the JSON text of its schema, or to ``None``
    for raw text. ``texts_of`` maps the name of a rule to the raw texts that it allows: a list, an expression,
    or ``None`` for any text. ``requires`` returns whether a tool requires a parameter. ``members`` returns
    the expression for a tool's arguments in a notation of :mod:`~inferd.engine.local.schema.notations`. The
    name of a notation is also the name of the parser's rule for this notation.
    """

    def __init__(
        self,
        syntax: bytes,
        control: Mapping[str, int],
        schema_of: Callable[[str], bytes | None],
        texts_of: Callable[[str], Sequence[str] | str | None] = lambda name: None,
        requires: Callable[[str, str], bool] = lambda tool, parameter: False,
        members: Callable[[Format, str, str], str | None] = lambda form, tool, notation: None,
    ) -> None:
        read = orjson.loads(syntax)
        arena = orjson.loads(read["parser"])
        self.begun: str = read["generation_prompt"]
        """The part of the answer that is already in the prompt."""
        self._nodes: list[dict[str, Any]] = arena["parsers"]
        self._named: dict[str, int] = arena["rules"]
        self._root: int = arena["root"]
        self._control = control
        self._schema_of = schema_of
        self._texts_of = texts_of
        self._requires = requires
        self._members = members
        self._tool_of = dict(self._arguments())
        self._texts: Sequence[str] | str | None = None  # of the current rule
        self._value: bytes | None = None  # the schema of its value
        self._free_text = False
        self._numbers: dict[str | tuple[str, ...], int] = {}
        special = [re.escape(name) for name in sorted(control, key=len, reverse=True)]
        self._special = re.compile("|".join(special) or "(?!)")
        self._marks = re.compile(f"({'|'.join((*special, '<[|][a-z_]+[|]>'))})")
        self._rules: dict[str, str] = {}
        self._values: dict[bytes, str] = {}
        self._fresh = 0

    def root(self, *, free_text: bool = False) -> str:
        """Returns the rule for the whole answer, including the part that is already in the prompt.

        With ``free_text``, a text node at the end of a sequence matches any text in which none of the node's
        delimiters occurs.
        """
        self._free_text = free_text
        return self.add("whole", self._expression(self._root))

    def calls(self) -> str:
        """Returns the expression for one or several tool calls. Adds the rules of the expression to the
        grammar."""
        nodes = self._nodes
        triggers = sorted(name for name, i in self._named.items() if nodes[i].get("trigger"))
        # A family with a section around its calls has a rule for each; the outer rule refers to the inner
        # one.
        inner = {name for outer in triggers for name in self._inside(outer) if name != outer}
        outermost = [name for name in triggers if name not in inner]
        if not outermost:
            raise NoCalls
        return " | ".join(self.rule(name) for name in outermost)

    def add(self, name: str, body: str) -> str:
        """Adds a rule to the grammar and returns a reference to it. ``name`` may end with attributes in
        brackets."""
        self._rules[name] = body
        return name.partition("[")[0]

    def fresh(self, name: str) -> str:
        """Returns a new name for a rule. The name begins with ``name``."""
        self._fresh += 1
        return f"{name}_{self._fresh}"

    def value(self, text: bytes) -> str:
        """Returns the rule for a JSON value that matches the schema ``text``."""
        if text not in self._values:
            self._values[text] = self.add(f"json_{len(self._rules)}", f"%json {text.decode()}")
        return self._values[text]

    def literal(self, text: str) -> str:
        """Returns the expression for the literal ``text``. Control tokens in ``text`` are written as tokens,
        not as characters.

        Other markers of the format become separate parts of the expression, too. Otherwise a literal could be
        the beginning of a longer literal. llguidance takes the longest literal that fits, and so would skip
        the rule with the shorter literal.
        """
        parts = []
        for part in filter(None, self._marks.split(text)):
            parts.append(f"<[{self._control[part]}]>" if part in self._control else lark.quoted(part))
        return " ".join(parts)

    def space(self) -> str:
        """Returns the expression for optional white space."""
        return self.add("SPACE", f"/[ \\n\\t]{{1,{_LONGEST}}}/") + "?"

    def text_without_brace(self) -> str:
        """Returns the expression for an empty text, and for any text that begins neither with a brace nor
        with white space."""
        return self.add("PLAIN", "/[^{\\s](?s:.*)/") + "?"

    def up_to(self, ends: list[str], others: Sequence[str] = ()) -> str:
        """Returns the expression for any text up to and including the first of ``ends``. The text may not
        contain any of ``others``."""
        if any(self._special.search(end) for end in ends):
            choice = " | ".join(self.literal(end) for end in ends)
            return f"({self._any_text()})? ({choice})"
        pattern = "|".join(map(lark.regex_quoted, ends))
        never = "|".join(map(lark.regex_quoted, others))
        without = f" & ~/(?s:.*)(?:{never})(?s:.*)/" if others else ""
        return self.add(f"upto_{len(self._rules)}[lazy]", f"/(?s:.*?)(?:{pattern})/{without}")

    def raw(self, texts: Sequence[str] | str | None, ends: list[str], others: Sequence[str] = ()) -> str:
        """Returns the expression for a raw text followed by one of its ``ends``. ``texts`` is a list of the
        allowed texts or an expression for them. If ``texts`` is ``None``, any text that contains none of
        ``others`` is allowed."""
        if isinstance(texts, str):
            return self._matching(texts, ends)
        if texts is None or any(end in text for end in ends for text in texts):
            return self.up_to(ends, others)
        either, last = (" | ".join(map(self.literal, given)) for given in (texts, ends))
        return f"({either}) ({last})"

    def _matching(self, expression: str, ends: list[str]) -> str:
        """Returns an expression for a text that matches ``expression`` and contains none of ``ends``,
        followed by one of ``ends``."""
        number = len(self._rules)
        text = self.add(f"TEXT_{number}", expression)
        if any(self._special.search(end) for end in ends):
            return f"{text} ({' | '.join(map(self.literal, ends))})"
        pattern = "|".join(map(lark.regex_quoted, ends))
        with_end = self.add(f"ENDED_{number}", f"{text} /(?:{pattern})/")
        return self.add(f"RAW_{number}", f"{with_end} & ~/(?s:.*)(?:{pattern})(?s:.+)/")

    def text(self, start: str) -> str:
        """Returns the whole grammar. ``start`` is the expression of its start rule."""
        rules = [f"{name}: {body}" for name, body in self._rules.items()]
        return "\n".join(("%llguidance {}", f"start: {start}", *rules))

    # Nodes.

    def _arguments(self) -> Iterator[tuple[int, str]]:
        """Yields a pair for each node that encloses the arguments of a call: the number of the node in the
        list of nodes, and the name of the call's tool."""
        for node in self._nodes:
            if node["type"] == "tag" and node["tag"] == "tool":
                tool = self._literal_in("tool-name", node["child"])
                yield from ((part, tool) for part in self._tagged("tool-args", node["child"]))

    def _tagged(self, tag: str, i: int) -> Iterator[int]:
        """Yields the numbers of the nodes with this tag, at or below node ``i``."""
        left, seen = [i], set()
        while left:
            at = left.pop()
            if at in seen:
                continue
            seen.add(at)
            node = self._nodes[at]
            if node["type"] == "tag" and node["tag"] == tag:
                yield at
            left += [node["child"]] if "child" in node else reversed(node.get("children", ()))

    def _literal_in(self, tag: str, i: int) -> str:
        """Returns the literal in the first node with this tag at or below node ``i``, or ``""`` if there is
        none."""
        tagged = next(self._tagged(tag, i), None)
        return "" if tagged is None else str(self._nodes[self._nodes[tagged]["child"]].get("literal", ""))

    def _call_arguments(self, i: int, tool: str) -> str | None:
        """Returns an expression for the arguments of a call to ``tool``: each argument at most once, in the
        order of the schema.

        The expression replaces node ``i`` if that node accepts any argument any number of times. Returns
        ``None`` for other nodes.
        """
        arguments = self._nodes[i]
        if arguments["type"] == "rule" and arguments["name"] == DICT:
            return self._members(self, tool, arguments["name"])
        if self._are_keywords(i):
            return self._members(self, tool, KEYWORDS)
        return self._in_order(arguments, tool) if arguments["type"] == "repetition" else None

    def _are_keywords(self, i: int) -> bool:
        """Returns whether the first argument below node ``i`` begins with ``name=``."""
        opened = next(self._tagged("tool-arg-open", i), None)
        inner = {} if opened is None else self._nodes[self._nodes[opened]["child"]]
        names = inner.get("children", ())
        return len(names) == 2 and self._nodes[names[1]].get("literal") == "="

    def _in_order(self, repetition: dict[str, Any], tool: str) -> str | None:
        inner = self._nodes[repetition["child"]]
        parts = inner["children"] if inner["type"] == "sequence" else [repetition["child"]]
        choices = [at for at, i in enumerate(parts) if self._nodes[i]["type"] == "choice"]
        if (repetition["min_count"], repetition["max_count"]) != (0, -1) or len(choices) != 1:
            return None
        out = []
        for option in self._nodes[parts[choices[0]]]["children"]:
            name = self._literal_in("tool-arg-name", option)
            if not name:
                return None
            argument = self._sequence([*parts[: choices[0]], option, *parts[choices[0] + 1 :]])
            out.append(argument if self._requires(tool, name) else f"({argument})?")
        return " ".join(out)

    def _inside(self, name: str) -> set[str]:
        """Returns the names of all rules that a rule refers to, directly or through other rules."""
        seen: set[str] = set()
        left = [self._nodes[self._named[name]]["child"]]
        while left:
            node = self._nodes[left.pop()]
            if node["type"] in ("rule", "ref"):
                if node["name"] in seen:
                    continue
                seen.add(node["name"])
                node = self._nodes[self._named[node["name"]]]
            left += [node["child"]] if "child" in node else node.get("children", [])
        return seen

    def knows(self, name: str) -> bool:
        """Returns whether the parser has a rule with this name."""
        return name in self._named

    def rule(self, name: str) -> str:
        """Adds the parser's rule ``name`` to the grammar, if needed, and returns a reference to it."""
        around = self._texts
        texts = self._texts_of(name) or around
        mine = f"r{self._named[name]}"
        if texts is not None:  # a shared rule has other texts elsewhere
            key = texts if isinstance(texts, str) else tuple(texts)
            mine += f"_{self._numbers.setdefault(key, len(self._numbers))}"
        if mine not in self._rules:
            self._rules[mine] = ""  # a rule may refer to itself
            value, self._value = self._value, self._schema_of(name) or self._value
            self._texts = texts
            self._rules[mine] = self._expression(self._nodes[self._named[name]]["child"]) or '""'
            self._texts, self._value = around, value
        return mine

    def _expression(self, i: int) -> str:
        """Returns the expression for node ``i``, or ``""`` if the node matches no text."""
        node = self._nodes[i]
        kind = node["type"]
        if kind in ("epsilon", "start", "end", "and", "not"):
            return ""
        if i in self._tool_of:
            held = self._call_arguments(node["child"], self._tool_of[i])
            return self._expression(node["child"]) if held is None else held
        if kind == "literal":
            return self.literal(node["literal"]) if node["literal"] else ""
        if kind == "sequence":
            return self._sequence(self._flat(i))
        if kind == "choice":
            return self._choice([self._expression(child) for child in node["children"]])
        if kind == "repetition":
            return lark.repeated(self._expression(node["child"]), node["min_count"], node["max_count"])
        if kind == "space":
            return self.space()
        if kind == "any":
            return "/(?s:.)/"
        if kind == "chars":
            return f"/{lark.char_class(node)}{lark.counts(node)}/{lark.optional(node)}"
        if kind == "string":
            delimiter = re.escape(node["delimiter"])
            return f"/([^{delimiter}\\\\]|\\\\[{delimiter}\\\\\\/bfnrt]|\\\\u[0-9a-fA-F]{{4}})+/?"
        if kind == "schema":
            text = self._schema_of(node["name"])
            return self._expression(node["child"]) if text is None else self.value(text)
        if kind in ("rule", "ref"):
            return self.rule(node["name"])
        if kind == "gbnf" and not node["grammar"]:
            return ""
        if kind == "ac":
            return self.raw(self._texts, node["delimiters"])
        if self._is_value(node):
            return self.value(self._value or b"{}")
        if kind == "until":
            raise Inexpressible("text that ends before something unknown")
        if "child" in node:
            return self._expression(node["child"])
        raise Inexpressible(kind)

    def _flat(self, i: int) -> list[int]:
        """Returns the parts of a sequence, including the parts of nested sequences."""
        node = self._nodes[i]
        if node["type"] == "sequence":
            return [part for child in node["children"] for part in self._flat(child)]
        if node["type"] in ("tag", "atomic") and not self._is_value(node) and i not in self._tool_of:
            return self._flat(node["child"])
        if node["type"] in ("epsilon", "start", "end", "and", "not"):
            return []
        if node["type"] == "rule" and self._nodes[node["child"]]["type"] == "until":
            return [node["child"]]
        return [i]

    def _sequence(self, parts: list[int]) -> str:
        out = []
        rest = ""
        untils = [at for at, i in enumerate(parts) if self._resolved(i)["type"] == "until"]
        for at, i in enumerate(parts):
            node = self._resolved(i)
            if rest and node["type"] == "literal":
                text, rest = node["literal"][len(rest) :], rest[len(node["literal"]) :]
                if text:
                    out.append(self.literal(text))
                continue
            if node["type"] == "until" and self._free_text and at == len(parts) - 1:
                out.append(self._text_without(node["delimiters"]))
                continue
            if node["type"] == "until":
                rest = self._end_of(node, parts[at + 1 :])
                if at == untils[-1]:
                    out.append(
                        self.raw(self._texts, [rest], [end for end in node["delimiters"] if end != rest])
                    )
                else:  # attributes before the value
                    out.append(self.up_to([rest]))
                continue
            if rest and self._is_blank(node):
                continue  # the text before the end includes it
            inner = self._flat(node["child"]) if self._is_optional(node) else []
            if inner and self._resolved(inner[-1])["type"] == "until":
                # The end of that text comes after the option.
                if all(self._may_be_empty(part) for part in parts[at + 1 :]):
                    continue  # optional text at the end
                rest = self._end_of(self._resolved(inner[-1]), parts[at + 1 :])
                head = self._sequence(inner[:-1])
                out.append(f"({head} {self.up_to([rest])} | {self.literal(rest)})")
                continue
            expression = self._expression(i)
            if expression:
                out.append(f"({expression})" if self._resolved(i)["type"] == "choice" else expression)
        return " ".join(out)

    def _end_of(self, until: dict[str, Any], following: list[int]) -> str:
        """Returns the delimiter that ends the text node ``until``. The text of the nodes ``following`` begins
        with this delimiter."""
        text = ""
        for node in map(self._resolved, following):
            if node["type"] == "literal":
                text += node["literal"]
                for delimiter in until["delimiters"]:
                    if text.startswith(delimiter):
                        return str(delimiter)
                if any(delimiter.startswith(text) for delimiter in until["delimiters"]):
                    continue
            text = ""
            if not self._is_blank(node):
                break
        raise Inexpressible("text that ends before something unknown")

    def _is_value(self, node: dict[str, Any]) -> bool:
        """Returns whether the node is a JSON value for which the parser accepts any text up to a
        delimiter."""
        if self._value is None or node["type"] != "tag" or node["tag"] != "tool-arg-value":
            return False
        child = self._nodes[node["child"]]
        return any(self._nodes[i]["type"] == "until" for i in child.get("children", [node["child"]]))

    def _may_be_empty(self, i: int) -> bool:
        node = self._resolved(i)
        return bool(node["type"] == "space" or (node["type"] == "repetition" and node["min_count"] == 0))

    def _is_optional(self, node: dict[str, Any]) -> bool:
        return node["type"] == "repetition" and (node["min_count"], node["max_count"]) == (0, 1)

    def _is_blank(self, node: dict[str, Any]) -> bool:
        if node["type"] in ("repetition", "tag", "atomic"):
            return self._is_blank(self._nodes[node["child"]])
        return node["type"] == "space" or (node["type"] == "literal" and not node["literal"].strip())

    def _resolved(self, i: int) -> dict[str, Any]:
        node = self._nodes[i]
        plain = ("until", "literal", "tag", "atomic")
        while node["type"] in ("tag", "atomic", "ref") or (
            node["type"] == "rule" and self._nodes[node["child"]]["type"] in plain
        ):
            node = self._nodes[self._named[node["name"]] if node["type"] == "ref" else node["child"]]
        return node

    def _choice(self, options: list[str]) -> str:
        given = [option for option in options if option]
        if not given:
            return ""
        choice = f"({' | '.join(given)})"
        return choice + "?" if len(given) < len(options) else choice

    def _text_without(self, ends: list[str]) -> str:
        """Returns the expression for any text, even an empty one, that contains none of ``ends``."""
        if not ends:
            return f"{self._any_text()}?"
        pattern = "|".join(map(lark.regex_quoted, ends))
        return self.add(f"REST_{len(self._rules)}", f"/(?s:.+)/ & ~/(?s:.*)(?:{pattern})(?s:.*)/") + "?"

    def _any_text(self) -> str:
        return self.add("ANYTEXT", "/(?s:.+)/")
