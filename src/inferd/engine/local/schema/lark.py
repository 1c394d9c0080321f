"""Builds parts of expressions in llguidance's Lark syntax: literals, repetitions and character classes.

A ``node`` is a node of one of llama.cpp's parsers (see :mod:`~inferd.engine.local.schema.family_grammar`).
"""

from __future__ import annotations

import json
import re
from typing import Any


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def regex_quoted(text: str) -> str:
    return re.sub(r"[\\^$.|?*+(){}\[\]/#]", r"\\\g<0>", text).replace("\n", "\\n")


def repeated(inner: str, least: int, most: int) -> str:
    if not inner:
        return ""
    sign = {(0, 1): "?", (0, -1): "*", (1, -1): "+", (1, 1): ""}.get((least, most))
    if sign is None:
        sign = f"{{{least},{'' if most < 0 else most}}}"
    return f"({inner}){sign}"


def counts(node: dict[str, Any]) -> str:
    least, most = max(node["min_count"], 1), node["max_count"]
    return "+" if (least, most) == (1, -1) else f"{{{least},{'' if most < 0 else most}}}"


def optional(node: dict[str, Any]) -> str:
    return "?" if node["min_count"] == 0 else ""


def char_class(node: dict[str, Any]) -> str:
    ranges = "".join(
        f"\\u{{{part['start']:x}}}" + (f"-\\u{{{part['end']:x}}}" if part["end"] != part["start"] else "")
        for part in node["ranges"]
    )
    return f"[{'^' if node['negated'] else ''}{ranges}]"
