"""Makes Lark expressions for call arguments in notations other than JSON. llama.cpp's parsers for these
notations accept any value.

Gemma 4 writes ``{name:<|"|>text<|"|>,count:3,list:[1,2]}``. Gemma 4 sorts the members of an object by name,
as its chat template does. LFM2.5 writes ``name="text", count=3, list=[1, 2]``, as Python does. The
expressions enforce the tool's schema. They may forbid values that the schema allows: undeclared members must
come after the declared ones, and must have short names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from inferd.engine.local import _llama
from inferd.engine.local.schema import alternatives, lark, raw_texts
from inferd.engine.local.schema.alternatives import (
    SCALARS,
    Budget,
    Conjunction,
    Parts,
    TooManyAlternatives,
)
from inferd.engine.local.schema.family_grammar import DICT, KEYWORDS, Format
from inferd.engine.local.schema.guides import TOOL_OPTIONS, json_text

QUOTE = '<|"|>'
VALUE = "gemma4-value"
_MOST_MEMBERS = 2000  # the most declared members of an object; with more, any members are allowed
_DEEPEST = 60  # the most levels of nested values; a deeper value may be any value
_WORDS = {"boolean": ("True", "False"), "null": ("None",)}
_OBJECT = {"type": "object"}

Texts = Callable[[Any], "Sequence[str] | str | None"]
"""Returns the texts that the schema of a string allows: a list, an expression, or ``None`` for any text."""
Takes = Callable[[str], bool]
"""Returns whether llguidance accepts a grammar."""
Bounds = Callable[[str, str], str]
"""Returns further conditions on a name as an expression. The arguments are the texts before and after the
name."""


class _Notation(Protocol):
    comma: str

    def anything(self) -> str:
        """Returns the expression for any value that the parser can read."""

    def text(self, conjunction: Conjunction, texts: Sequence[str] | str | None) -> str:
        """Returns the expression for a string that matches all schemas of the conjunction. ``texts``, if
        given, lists the allowed strings or is an expression for them."""

    def scalars(self, schema: dict[str, Any]) -> str:
        """Returns the expression for a number, a boolean or null that matches the schema."""

    def given(self, value: Any) -> str:
        """Returns the expression for exactly ``value``."""

    def name(self, name: str) -> str | None:
        """Returns the expression for the name of a member and its colon, or ``None`` if the parser cannot
        read the name."""

    def names(self, bounds: Bounds) -> list[str]:
        """Returns regular expressions for the names of undeclared members, with their colons."""

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Returns the names in the order in which an object writes them."""


class _Gemma:
    comma = '","'

    def __init__(self, form: Format) -> None:
        self._form = form

    def anything(self) -> str:
        return self._form.rule(VALUE)

    def text(self, conjunction: Conjunction, texts: Sequence[str] | str | None) -> str:
        return f"{self._form.literal(QUOTE)} {self._form.raw(texts, [QUOTE])}"

    def scalars(self, schema: dict[str, Any]) -> str:
        return self._form.value(json_text(schema, TOOL_OPTIONS))

    def given(self, value: Any) -> str:
        return self._form.literal(self._written(value))

    def _written(self, value: Any) -> str:
        if isinstance(value, dict):
            members = (f"{name}:{self._written(value[name])}" for name in self.in_order(value))
            return f"{{{','.join(members)}}}"
        if isinstance(value, list):
            return f"[{','.join(map(self._written, value))}]"
        return f"{QUOTE}{value}{QUOTE}" if isinstance(value, str) else json.dumps(value)

    def name(self, name: str) -> str | None:
        return None if not name or set(name) & set(":}") or QUOTE in name else self._form.literal(f"{name}:")

    def names(self, bounds: Bounds) -> list[str]:
        return [rf'/[^:,{{}}\[\]<>"\n]{{1,64}}:/{bounds("", ":")}']

    def in_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=str.lower)


class _Python:
    comma = "/, ?/"

    def __init__(self, form: Format) -> None:
        self._form = form

    def anything(self) -> str:
        return self._form.rule(KEYWORDS) if self._form.knows(KEYWORDS) else self.text([], None)

    def text(self, conjunction: Conjunction, texts: Sequence[str] | str | None) -> str:
        if texts is not None and not isinstance(texts, str):
            return f"({' | '.join(map(self.given, texts))})"
        double = self._form.value(json_text(alternatives.string(conjunction), TOOL_OPTIONS))
        single = r"/'([^'\\\n]|\\['\\\/bfnrt])*'/"
        if texts is not None:
            plain = self._form.add(self._form.fresh("SINGLE"), rf"{texts} & /[^'\\\n]*/")
            single = f'"\'" {plain} "\'"'
        return f"({double} | {single})"

    def scalars(self, schema: dict[str, Any]) -> str:
        words = [self._form.literal(word) for kind in schema["type"] for word in _WORDS.get(kind, ())]
        return f"({' | '.join([self._form.value(json_text(schema, TOOL_OPTIONS)), *words])})"

    def given(self, value: Any) -> str:
        written = dict.fromkeys((json.dumps(value, ensure_ascii=False), self._written(value)))
        return f"({' | '.join(map(self._form.literal, written))})"

    def _written(self, value: Any) -> str:
        if isinstance(value, dict):
            members = (f"{self._written(name)}: {self._written(each)}" for name, each in value.items())
            return f"{{{', '.join(members)}}}"
        if isinstance(value, list):
            return f"[{', '.join(map(self._written, value))}]"
        if isinstance(value, str):
            plain = value.isprintable() and not set(value) & set("'\\")
            return f"'{value}'" if plain else json.dumps(value, ensure_ascii=False)
        return repr(value)

    def name(self, name: str) -> str | None:
        return f"{self.given(name)} /: ?/"

    def names(self, bounds: Bounds) -> list[str]:
        return [
            rf"/{quote}[^{quote}\\\n]{{1,64}}{quote}: ?/{bounds(quote, f'{quote}: ?')}" for quote in "\"'"
        ]

    def in_order(self, names: Iterable[str]) -> list[str]:
        return list(names)


def keywords(form: Format, schema: Mapping[str, Any], texts: Texts, takes: Takes) -> str:
    """Returns the expression for a call's arguments in the notation of LFM2.5."""
    return _Values(form, schema, texts, takes, _Python(form)).keywords()


def members(form: Format, schema: Mapping[str, Any], texts: Texts, takes: Takes) -> str:
    """Returns the expression for a call's arguments in the notation of Gemma 4."""
    held = _Values(form, schema, texts, takes, _Gemma(form)).value([schema, _OBJECT])
    return form.rule(DICT) if held is None else held


class _Values:
    """Makes the expressions for the values of one tool's ``schema``."""

    def __init__(
        self, form: Format, schema: Mapping[str, Any], texts: Texts, takes: Takes, notation: _Notation
    ) -> None:
        self._form = form
        self._root = schema
        self._texts = texts
        self._takes = takes
        self._notation = notation
        self._rules: dict[frozenset[int], str | None] = {}  # by the id() of the schemas, which the root keeps
        self._budget = Budget(20_000)
        self._depth = 0

    def keywords(self) -> str:
        """Returns the expression for arguments written as ``name=value``. Undeclared arguments are left out,
        because the parser cannot read them."""
        ways = []
        comma = f'"," {self._form.space()}'
        known, _ = alternatives.parameters(self._root)
        for conjunction in self._alternatives([self._root, _OBJECT]) or [[self._root]]:
            found = alternatives.members(conjunction)
            values = {name: self.value(parts) for name, parts in found.named.items() if name in known}
            given = [name for name, value in values.items() if value is not None]
            parts = [f"{self._form.literal(f'{name}=')} {values[name]}" for name in given]
            ways.append(self._listed(parts, [name in found.required for name in given], comma))
        return f"({' | '.join(dict.fromkeys(ways))})"

    def value(self, parts: Parts) -> str | None:
        """Returns the expression for a value that matches all the schemas, or ``None`` if no value can. At
        the depth ``_DEEPEST`` the expression allows any value."""
        if any(part is False for part in parts):
            return None
        schemas = [part for part in parts if isinstance(part, dict)]
        key = frozenset(map(id, schemas))
        if key not in self._rules and self._depth < _DEEPEST:
            self._depth += 1
            rule = self._rules[key] = self._form.add(self._form.fresh("value"), "")  # if it refers to itself
            body = self._body(schemas)
            self._rules[key] = rule if body else None
            self._form.add(rule, body)
            self._depth -= 1
        return self._rules[key] if key in self._rules else self._notation.anything()

    def _alternatives(self, parts: Parts) -> list[Conjunction] | None:
        try:
            _llama.stop_if_cancelled()
            return alternatives.alternatives(parts, self._root, self._budget)
        except TooManyAlternatives:
            return None

    def _body(self, schemas: Parts) -> str:
        found = self._alternatives(schemas)
        if found is None or any(map(alternatives.says_nothing, found)):
            return self._notation.anything()
        options = [option for conjunction in found for option in self._options(conjunction)]
        return " | ".join(dict.fromkeys(options))

    def _options(self, conjunction: Conjunction) -> list[str]:
        given = alternatives.listed(conjunction)
        if given is not None:
            return [self._notation.given(value) for value in given]
        kinds = alternatives.kinds(conjunction)
        options: list[str | None] = []
        if kinds & SCALARS:
            options.append(self._notation.scalars(alternatives.scalar(conjunction, kinds & SCALARS)))
        if "string" in kinds:
            texts = self._texts(alternatives.string(conjunction))
            options.append(self._notation.text(conjunction, texts))
        if "array" in kinds:
            options.append(self._array(conjunction))
        if "object" in kinds:
            options.append(self._object(conjunction))
        return [option for option in options if option is not None]

    def _array(self, conjunction: Conjunction) -> str | None:
        found = alternatives.items(conjunction)
        first = [self.value(parts) for parts in found.first]
        further = self.value(found.further)
        most = found.most
        if None in first or further is None:
            count = first.index(None) if None in first else len(first)
            most = count if most is None else min(most, count)
        if most is not None:
            first = first[:most]
            if most < found.least:
                return None
        if most == 0:
            return '"[]"'
        comma, count, rest = self._notation.comma, max(len(first), 1), ""
        if most is None or most > count:
            rest = f"({comma} {further}){_times(found.least - count, None if most is None else most - count)}"
        for number in range(len(first) - 1, 0, -1):
            rest = f"{comma} {first[number]} {rest}"
            rest = rest if number < found.least else f"({rest})?"
        begins = first[0] if first else further
        return f'"[" {begins} {rest} "]"' if found.least else f'"[" ({begins} {rest})? "]"'

    def _object(self, conjunction: Conjunction) -> str | None:
        found = alternatives.members(conjunction)
        if len(found.named) > _MOST_MEMBERS:
            return self._notation.anything()
        parts, needed = [], []
        for name in self._notation.in_order(found.named):
            value, begin = self.value(found.named[name]), self._notation.name(name)
            if value is not None and begin is not None:
                parts.append(f"{begin} {value}")
                needed.append(name in found.required)
            elif name in found.required:
                return None
        least = found.least - sum(needed)
        most = None if found.most is None else found.most - sum(needed)
        others = self._others(found)
        if others and all(needed) and (most is None or most > 0):
            more = None if most is None else most - 1
            parts.append(f"{others} ({self._notation.comma} {others}){_times(least - 1, more)}")
            needed.append(least > 0)
        elif others and not all(needed):
            parts.append(f"{others} ({self._notation.comma} {others})*")
            needed.append(False)
        return f'"{{" {self._listed(parts, needed, self._notation.comma)} "}}"'

    def _others(self, found: alternatives.Members) -> str:
        """Returns the expression for an undeclared member, or ``""`` if the object cannot have any."""
        patterns = [pattern for pattern, _ in found.others if pattern is not None]
        options = []
        for pattern, parts in found.others:
            value = self.value(parts)
            names = "" if value is None else self._names(pattern, list(found.named), patterns)
            if names:
                options.append(f"({names}) {value}")
        return self._form.add(self._form.fresh("other"), " | ".join(options)) if options else ""

    def _names(self, pattern: str | None, named: list[str], patterns: list[str]) -> str:
        """Returns the expression for names that match ``pattern`` and are not in ``named``.

        If ``pattern`` is ``None``, the names must match none of ``patterns`` instead. Returns ``""`` if no
        expression can describe the names.
        """
        wholes = [raw_texts.whole(each) for each in (patterns if pattern is None else [pattern])]

        def bounds(begin: str, end: str) -> str:
            others = "|".join(map(lark.regex_quoted, named))
            without = f" & ~/{begin}(?:{others}){end}/" if others else ""
            sign = "~" if pattern is None else ""
            return without + "".join(f" & {sign}/{begin}{whole}{end}/" for whole in wholes)

        expressions = [] if None in wholes else self._notation.names(bounds)
        taken = [each for each in expressions if self._takes(f"start: NAME\nNAME: {each}")]
        return " | ".join(self._form.add(self._form.fresh("NAME"), each) for each in taken)

    def _listed(self, parts: list[str], needed: list[bool], comma: str) -> str:
        """Returns the expression for a list of ``parts`` in their order, with commas between them. A part may
        be absent unless its item in ``needed`` is true."""
        rest = ""
        beginnings = [] if any(needed) else [""]
        for part, is_needed in reversed(list(zip(parts, needed, strict=True))):
            rule = self._form.add(self._form.fresh("member"), part)
            beginnings = [*([] if is_needed else beginnings), f"{rule} {rest}"]
            further = f"({comma} {rule}){'' if is_needed else '?'} {rest}"
            rest = self._form.add(self._form.fresh("further"), further)
        given = [beginning for beginning in beginnings if beginning]
        choice = f"({' | '.join(given)})" if given else ""
        return f"{choice}?" if given and "" in beginnings else choice


def _times(least: int, most: int | None) -> str:
    """Returns the operator that repeats an expression ``least`` to ``most`` times."""
    return "*" if least <= 0 and most is None else f"{{{max(least, 0)},{'' if most is None else most}}}"
