"""Nearly valid request lines for the parsers of the surfaces."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from inferd.errors import InferdError

A = TypeVar("A")
R = TypeVar("R")


def outcome(call: Callable[[A], R], argument: A) -> R | InferdError:
    """The result of the call, or the InferdError that it raises."""
    try:
        return call(argument)
    except InferdError as error:
        return error


def line_of(draw: st.DrawFn, members: Sequence[tuple[str, Any]]) -> bytes:
    """An object with these members in any order; sometimes all letters of a name are escaped."""
    parts = []
    for key, value in draw(st.permutations(members)):
        name = json.dumps(key)
        if draw(st.integers(0, 9)) == 0:
            name = '"' + "".join(f"\\u{ord(char):04x}" for char in key) + '"'
        parts.append(name + ":" + json.dumps(value, ensure_ascii=draw(st.booleans())))
    return ("{" + ",".join(parts) + "}").encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, lines: st.SearchStrategy[bytes]) -> bytes:
    """A line with a slice cut out, doubled or replaced."""
    line = draw(lines)
    start = draw(st.integers(0, len(line)))
    stop = draw(st.integers(start, min(len(line), start + 12)))
    middle = draw(st.one_of(st.just(b""), st.just(line[start:stop] * 2), st.binary(max_size=6)))
    return line[:start] + middle + line[stop:]
